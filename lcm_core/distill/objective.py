"""What an objective is, and how a file of `objectives` registers one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..option import Known, Option, about_of, having, options_among, options_of, resolved
from .losses import Problem

Loss = Callable[..., Tensor]  # (problem, **options) -> a scalar

OBJECTIVES: dict[str, Objective] = {}


@dataclass(frozen=True)
class Objective:
    """An objective: its name, what its docstring's first paragraph says, whether it asks the guided teacher, the γ for
    sampling what it trains (None where that alone is no few-step model), its options and their defaults by name, in
    the order of their places, and its loss."""

    name: str
    about: str
    teacher: bool
    gamma: float | None
    options: Mapping[str, Option]
    defaults: Mapping[str, Any]
    loss: Loss

    def resolved(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options of a call; ValueError for one that the objective has not, and a value that is not allowed."""
        return resolved(self.name, self.options, self.defaults, options)

    def __call__(self, problem: Problem, **options: Any) -> Tensor:
        """The loss, a scalar with gradient. Raises ValueError as `resolved`."""
        return self.loss(problem, **self.resolved(options))


def objective(*, teacher: bool = True, gamma: float | None = 1.0) -> Callable[[Loss], Objective]:
    """Registers a function `(problem, *, options) -> scalar` as the objective of its name.

    teacher: whether it asks the guided teacher, and so needs the empty prompt's conditions. gamma: `multistep_sample`'s
    for what it trains, None where that alone is no few-step model. ValueError for a name that is taken, and for an
    option as `options_of` says.
    """

    def register(loss: Loss) -> Objective:
        name = getattr(loss, "__name__", "")
        if name in OBJECTIVES:
            raise ValueError(f"an objective {name} is there already; give the new one another name")
        options = options_of(name, loss, all_options())
        about = about_of(loss)
        OBJECTIVES[name] = Objective(
            name, about, teacher, gamma, {key: option for key, (option, _) in options.items()},
            {key: default for key, (_, default) in options.items()}, loss,
        )  # fmt: skip
        return OBJECTIVES[name]

    return register


def all_options() -> Known:
    """Name -> (option, default) of every objective's options, in the order of their places."""
    return options_among(OBJECTIVES)


def users_of(option: str) -> list[str]:
    """The names of the objectives that have an option."""
    return having(OBJECTIVES, option)
