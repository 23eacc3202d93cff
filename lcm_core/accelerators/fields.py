"""What each field of a recipe's JSON entry may be, and how it is read: one reader a field, in a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from .naming import BASES
from .recipe import GRIDS, Span

LONGEST_PATTERN = 200


def _number(value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"a number from {low:g} to {high:g}")
    return float(value)


def _whole(value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"a whole number from {low} to {high}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text")
    return value


def _listing(rule: str, check: Callable[[Any], Any]) -> Callable[[object], tuple]:
    """What reads a list of one or more items, each as `check` does."""

    def read(value: object) -> tuple:
        try:
            if isinstance(value, list) and value:
                return tuple(map(check, value))
        except (ValueError, TypeError):
            pass
        raise ValueError(f"a list of {rule}")

    return read


def _span(low: float, high: float) -> Callable[[object], Span]:
    def read(value: object) -> Span:
        rule = f'a number from {low:g} to {high:g}, or {{"default": …, "low": …, "high": …}} with low ≤ default ≤ high'
        try:
            if not isinstance(value, Mapping):
                return Span(*[_number(value, low, high)] * 3)
            span = Span(**{key: _number(number, low, high) for key, number in value.items()})
        except (ValueError, TypeError):
            raise ValueError(rule) from None
        if not span.low <= span.default <= span.high:
            raise ValueError(rule)
        return span

    return read


def _grid(value: object) -> dict[str, Any]:
    rule = '"lcm", "trailing", {"timesteps": [999, …]} or {"sigmas": [1.0, …]}, descending'
    if isinstance(value, str) and value in ("lcm", "trailing"):
        return {"grid": value}
    if isinstance(value, Mapping) and len(value) == 1:
        ((grid, given),) = value.items()
        number = {"timesteps": lambda t: _whole(t, 0, 10**6), "sigmas": lambda sigma: _number(sigma, 1e-9, 1)}.get(grid)
        if number is not None:
            levels = _listing(f"descending {grid}", number)(given)
            if all(before > after for before, after in pairwise(levels)):
                return {"grid": grid, "given": levels}
    raise ValueError(rule)


def _steps(value: object) -> dict[str, Any]:
    try:
        if not isinstance(value, Mapping):
            count = _whole(value, 1, 1000)
            return {"steps": (count,), "default_steps": count}
        if value.keys() == {"default", "allowed"}:
            allowed = tuple(sorted(_whole(count, 1, 1000) for count in value["allowed"]))
            if value["default"] in allowed:
                return {"steps": allowed, "default_steps": _whole(value["default"], 1, 1000)}
    except (ValueError, TypeError):
        pass
    raise ValueError('a whole number from 1 to 1000, or {"default": 4, "allowed": [2, 4, 8]} with default among them')


def _base(value: object) -> str:
    if value not in BASES:
        raise ValueError
    return str(value)


def _pattern(value: object) -> str:
    try:
        found = re.compile(_text(value))
    except re.error as error:
        raise ValueError from error
    if len(found.pattern) > LONGEST_PATTERN or found.groupindex.keys() - {"steps"} or found.search(""):
        raise ValueError
    return found.pattern


def _word(value: object) -> str:
    if not re.fullmatch(r"[a-z0-9]+", _text(value)):
        raise ValueError
    return str(value)


def _expert(value: object) -> str | None:
    if value not in ("high", "low", None):
        raise ValueError('"high", "low" or null')
    return value  # type: ignore[return-value]


def _hashes(value: object) -> dict[str, str]:
    if isinstance(value, Mapping) and all(
        re.fullmatch(r"[0-9a-f]{64}", key) and isinstance(name, str) and name for key, name in value.items()
    ):
        return dict(value)
    raise ValueError("an object, SHA-256 in 64 lower-case hexadecimal digits -> the published file's name")


def _modules(value: object) -> tuple:
    def released(item: Any) -> tuple[int, int, str]:
        count, rank, base = item
        return _whole(count, 1, 10**6), _whole(rank, 1, 10**5), _base(base)

    return _listing("[number of modules, rank, base]", released)(value)


def _source(value: object) -> str:
    if not re.match(r"https?://", _text(value)):
        raise ValueError
    return str(value)


def _as(key: str, read: Callable[[object], Any]) -> Callable[[object], dict[str, Any]]:
    return lambda value: {key: read(value)}


def _or_none(read: Callable[[object], Any]) -> Callable[[object], Any]:
    return lambda value: None if value is None else read(value)


_BASES_RULE = f"of these bases: {', '.join(BASES)}"
_PATTERN_RULE = (
    f"regular expressions of up to {LONGEST_PATTERN} characters that an empty name does not fit, "
    "with no other named group than steps"
)
REQUIRED = {
    "family": "a text",
    "bases": f"a list {_BASES_RULE}",
    "grid": " or ".join(f'"{grid}"' for grid in GRIDS),
    "steps": "a whole number, or the default and those allowed",
    "gamma": "a number from 0 to 1",
}
FINDS = ("files", "words", "sha256", "modules")
READERS: dict[str, Callable[[object], dict[str, Any]]] = {
    "grid": _grid,
    "steps": _steps,
    **{
        key: _as(key, read)
        for key, read in {
            "family": _text,
            "label": _text,
            "bases": _listing(_BASES_RULE.removeprefix("of "), _base),
            "original_steps": lambda value: _whole(value, 1, 1000),
            "gamma": _span(0, 1),
            "cfg": _span(1, 100),
            "guidance": _or_none(_span(0, 100)),
            "shift": _or_none(_span(0.001, 1000)),
            "strength": _span(-10, 10),
            "expert": _expert,
            "files": _listing(_PATTERN_RULE, _pattern),
            "words": _listing("words of lower-case letters and digits", _word),
            "sha256": _hashes,
            "modules": _modules,
            "note": _text,
            "sources": _listing("addresses that begin with https://", _source),
        }.items()
    },
}
