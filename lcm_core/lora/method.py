"""What a combine method is, and how a file of `methods` registers one.

All that a command line, a node, a help page or a record knows of a method is read from its function: its name, its
first paragraph and its keyword-only parameters, each annotated with an `Option`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..option import Known, Option, about_of, having, options_among, options_of, resolved
from .terms import Merge
from .vector import LoRAVector

# (vectors, weights, **options) -> what merges one module after another.
Prepare = Callable[..., Merge]

METHODS: dict[str, Method] = {}


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
        return resolved(self.name, self.options, self.defaults, options)

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
        options = options_of(name, prepare, all_options())
        about = about_of(prepare)
        defaults = {key: default for key, (_, default) in options.items()}
        METHODS[name] = Method(
            name, about, vectors, {key: option for key, (option, _) in options.items()}, defaults, prepare, removes
        )
        return METHODS[name]

    return register


def all_options() -> Known:
    """Name -> (option, default) of every method's options, in the order of their places."""
    return options_among(METHODS)


def users_of(option: str) -> list[str]:
    """The names of the methods that have an option."""
    return having(METHODS, option)
