"""What a combine method is, and how a file of `methods` registers one.

All that a command line, a node, a help page or a record knows of a method is read from its function: its name, its
first paragraph and its keyword-only parameters, each annotated with an `Option`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, get_type_hints

from ..text import listed, quoted
from .terms import Merge
from .vector import LoRAVector

# (vectors, weights, **options) -> what merges one module after another.
Prepare = Callable[..., Merge]

METHODS: dict[str, Method] = {}


@dataclass(frozen=True)
class Option:
    """An option of one or several methods, as `Annotated[float, Option(...)]` of a keyword-only parameter.

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


@dataclass(frozen=True)
class Method:
    """A combine method: its name, what its docstring's first paragraph says, how many vectors it takes if that is
    fixed, its options and their defaults by name, in the order of their places, and whether it takes the vectors after
    the first away from that."""

    name: str
    about: str
    vectors: int | None
    options: Mapping[str, Option]
    defaults: Mapping[str, Any]
    prepare: Prepare
    removes: bool = False

    def resolved(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options of a call, the defaults of those that are not given included.

        Raises ValueError for an option that the method has not, and a value that is not allowed.
        """
        if unknown := [name for name in options if name not in self.options]:
            raise ValueError(
                f"{self.name} has no option {listed(unknown)}; its options: {', '.join(self.options) or 'none'}"
            )
        whole = {**self.defaults, **options}
        for name, value in whole.items():
            self.options[name].check(name, value, self.defaults[name])
        return whole

    def signs(self, weights: Sequence[float]) -> list[float]:
        """The weights, as negative ones where the method takes a vector away."""
        return [-abs(weight) if self.removes and i else weight for i, weight in enumerate(weights)]

    def __call__(self, vectors: Sequence[LoRAVector], weights: Sequence[float], **options: Any) -> Merge:
        """What merges one module after another. Raises ValueError as `resolved`, and for another number of vectors."""
        if self.vectors not in (None, len(vectors)):
            raise ValueError(f"{self.name} has {len(vectors)} vectors; it takes {self.vectors}")
        return self.prepare(vectors, weights, **self.resolved(options))


def method(vectors: int | None = None, removes: bool = False) -> Callable[[Prepare], Method]:
    """Registers a function `(vectors, weights, *, options) -> Merge` as the method of its name, less a final `_`.

    Raises ValueError for a name that is taken, a parameter without an Option or default, and an option that is another
    than one that is known by its name or place, or has another default.
    """

    def register(prepare: Prepare) -> Method:
        name = getattr(prepare, "__name__", "").rstrip("_")
        if name in METHODS:
            raise ValueError(f"a method {name} is there already; give the new one another name")
        options = _options(name, prepare)
        about = " ".join((inspect.getdoc(prepare) or "").split("\n\n")[0].split())
        defaults = {key: default for key, (_, default) in options.items()}
        METHODS[name] = Method(
            name, about, vectors, {key: option for key, (option, _) in options.items()}, defaults, prepare, removes
        )
        return METHODS[name]

    return register


def _options(name: str, prepare: Prepare) -> dict[str, tuple[Option, Any]]:
    """Name -> (option, default) of a function's keyword-only parameters, in the order of their places."""
    hints = get_type_hints(prepare, include_extras=True)
    known, found = all_options(), {}
    for key, parameter in inspect.signature(prepare).parameters.items():
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
    return dict(sorted(found.items(), key=lambda item: item[1][0].place))


def all_options() -> dict[str, tuple[Option, Any]]:
    """Name -> (option, default) of every method's options, in the order of their places."""
    found = {name: (option, m.defaults[name]) for m in METHODS.values() for name, option in m.options.items()}
    return dict(sorted(found.items(), key=lambda item: item[1][0].place))


def users_of(option: str) -> list[str]:
    """The names of the methods that have an option."""
    return [name for name, m in METHODS.items() if option in m.options]
