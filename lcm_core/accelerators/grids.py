"""The levels at which a recipe evaluates the model."""

from __future__ import annotations

from collections.abc import Callable

from ..schedule import Flow, NoiseSchedule, lcm_sigmas, lcm_timesteps, trailing_sigmas, trailing_timesteps
from .recipe import Recipe


def levels(recipe: Recipe, steps: int | None, model: NoiseSchedule | Flow) -> list[int] | list[float]:
    """`steps` levels (None: the recipe's default), descending and without a final 0, as `multistep_sample` takes them.

    Of a NoiseSchedule they are timesteps: `lcm_timesteps`, `trailing_timesteps` or the recipe's own. Of a Flow they
    are σ in float64: `lcm_sigmas` and `trailing_sigmas` under the model's shift, or the recipe's own as they are,
    which no shift moves. ValueError for another number of steps than the recipe's own levels, and for timesteps of its
    own on a flow, or σ on a schedule, which such a model can't be evaluated at.
    """
    steps = recipe.default_steps if steps is None else steps
    if recipe.given and steps != len(recipe.given):
        raise ValueError(
            f"steps {steps} do not fit {recipe.label}, which has {len(recipe.given)} {recipe.grid} of its own; "
            f"use {len(recipe.given)} steps"
        )
    grids = _FLOW if isinstance(model, Flow) else _SCHEDULE
    if recipe.grid not in grids:
        has, lacks = ("σ", "timesteps") if isinstance(model, Flow) else ("timesteps", "σ")
        raise ValueError(
            f"{recipe.label} is given as {lacks}, and this model has {has}; use a model for {', '.join(recipe.bases)}"
        )
    return grids[recipe.grid](recipe, steps, model)


def _own_timesteps(recipe: Recipe, steps: int, schedule: NoiseSchedule) -> list[int]:
    if recipe.given[0] >= schedule.steps:
        raise ValueError(
            f"timestep {recipe.given[0]} of {recipe.label} is outside 0 … {schedule.steps - 1} of this model; "
            f"use a model for {', '.join(recipe.bases)}"
        )
    return [int(t) for t in recipe.given]


_SCHEDULE: dict[str, Callable] = {
    "lcm": lambda recipe, steps, schedule: lcm_timesteps(
        steps, original_steps=recipe.original_steps, train_steps=schedule.steps
    ),
    "trailing": lambda recipe, steps, schedule: trailing_timesteps(steps, schedule.steps),
    "timesteps": _own_timesteps,
}
_FLOW: dict[str, Callable] = {
    "lcm": lambda recipe, steps, flow: lcm_sigmas(steps, flow, original_steps=recipe.original_steps),
    "trailing": lambda recipe, steps, flow: trailing_sigmas(steps, flow),
    "sigmas": lambda recipe, steps, flow: list(recipe.given),
}
