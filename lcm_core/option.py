"""What a function that is found by being there, a combine method or an objective, tells of its options.

All that a command line, a node, a help page or a record knows of an option is read from a keyword-only parameter:
its name, its default and the `Option` that annotates it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol, get_type_hints

from .text import listed, quoted

Known = dict[str, tuple["Option", Any]]  # name -> (option, default)


@dataclass(frozen=True)
class Option:
    """An option of one or several functions, as `Annotated[float, Option(...)]` of a keyword-only parameter.

    about:            what the value is, such as "the share of values to keep"; it completes "it is ..."
    place:            its place among all options, from 1, never changed and never given to another: graphs keep their
                      values by it
    minimum, maximum: the range of a number, None where it has no end; above: the minimum itself is not allowed
    choices:          what a text may be
    flag:             its name on the command line where that is not the parameter's
    """

    about: str
    place: int
    minimum: float | None = None
    maximum: float | None = None
    above: bool = False
    choices: tuple[str, ...] = ()
    flag: str | None = None

    def check(self, name: str, value: object, default: object) -> None:
        """Raises ValueError for a value that is not of the default's type, or outside the range or choices."""
        if self.choices:
            if value not in self.choices:
                raise ValueError(f"{name} {quoted(value)} is unknown; use one of {', '.join(self.choices)}")
            return
        if isinstance(default, bool):
            right, kind = isinstance(value, bool), "True or False"
        elif isinstance(default, int):
            right, kind = isinstance(value, Integral) and not isinstance(value, bool), "a whole number"
        else:
            right, kind = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value), "a number"
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        if not right or not low <= value <= high or (self.above and value == low):  # type: ignore[operator]
            raise ValueError(f"{name} is {value}; it is {self.about}, {self.range or kind}, such as {default}")

    @property
    def range(self) -> str:
        """The range in words: `in (0, 1]`, `at least 0`, or nothing."""
        if self.minimum is None:
            return ""
        if self.maximum is None:
            return f"{'above' if self.above else 'at least'} {self.minimum:g}"
        return f"in {'(' if self.above else '['}{self.minimum:g}, {self.maximum:g}]"


class Optioned(Protocol):
    """What is registered with its options: a Method, an Objective."""

    @property
    def options(self) -> Mapping[str, Option]: ...
    @property
    def defaults(self) -> Mapping[str, Any]: ...


def about_of(function: Callable) -> str:
    """What a function is: its docstring's first paragraph, in one line."""
    return " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())


def options_among(registered: Mapping[str, Optioned]) -> Known:
    """Name -> (option, default) of the options of all that is registered, in the order of their places."""
    return in_place({key: (option, o.defaults[key]) for o in registered.values() for key, option in o.options.items()})


def having(registered: Mapping[str, Optioned], option: str) -> list[str]:
    """The names of what is registered that have an option."""
    return [name for name, o in registered.items() if option in o.options]


def options_of(name: str, function: Callable, known: Known) -> Known:
    """Name -> (option, default) of a function's keyword-only parameters, in the order of their places.

    `known` are those of its siblings. Raises ValueError for a parameter without an Option or default, and an option
    that is another than one that is known by its name or place, or has another default.
    """
    hints = get_type_hints(function, include_extras=True)
    found: Known = {}
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        option = next(iter(getattr(hints.get(key), "__metadata__", ())), None)
        if not isinstance(option, Option) or parameter.default is parameter.empty:
            raise ValueError(
                f"{name}'s {key} has no Option or no default; write {key}: Annotated[..., Option(...)] = ..."
            )
        found[key] = (option, parameter.default)
        for other, (same, default) in known.items():
            if other == key and (same, default) == found[key]:
                continue
            if other == key or same.place == option.place:
                free = max(o.place for o, _ in known.values()) + 1
                raise ValueError(
                    f"{name}'s {key} has place {option.place}, where there is {other} with default {default}; give it "
                    f"that option and default, or another name and place {free}"
                )
    return in_place(found)


def in_place(options: Known) -> Known:
    """Options in the order of their places."""
    return dict(sorted(options.items(), key=lambda item: item[1][0].place))


def resolved(name: str, options: Mapping[str, Option], defaults: Mapping[str, Any], given: Mapping[str, Any]):
    """All options of a call, the defaults of those that are not given included.

    Raises ValueError for an option that `name` has not, and a value that is not allowed.
    """
    if unknown := [key for key in given if key not in options]:
        raise ValueError(f"{name} has no option {listed(unknown)}; its options: {', '.join(options) or 'none'}")
    whole = {**defaults, **given}
    for key, value in whole.items():
        options[key].check(key, value, defaults[key])
    return whole
