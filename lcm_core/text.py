"""How error messages and reports write what they quote."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 200


def listed(names: Iterable[str], limit: int = 3) -> str:
    """The first names, each `shortened`, and how many more there are."""
    names = list(names)
    shown = ", ".join(map(shortened, names[:limit]))
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def shortened(text: object, longest: int = LONGEST) -> str:
    """A text, or what `str` makes of a value, with its middle left out where it is over `longest` characters."""
    text = str(text)
    if len(text) <= longest:
        return text
    half = (longest - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def quoted(value: object) -> str:
    """repr(value), `shortened`: what a user wrote, as an error quotes it."""
    return shortened(repr(value))
