"""A run's settings: what a user sets, and in the place of the rest what the recipe says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .reading import load_recipes
from .recipe import GRIDS, Grid, Recipe, Span


def settled(
    recipe: Recipe | None,
    *,
    steps: int | None = None,
    grid: Grid | None = None,
    original_steps: int | None = None,
    gamma: float | None = None,
    cfg: float | None = None,
) -> Recipe:
    """The recipe of one run: with what is set in the place of what it says, one number of steps, one gamma, one cfg.

    What is None is the recipe's own, and LCM-LoRA's without a recipe. original_steps without a grid are the LCM grid's.
    """
    recipe = recipe or load_recipes()[0]["lcm-lora"]
    steps = recipe.default_steps if steps is None else steps
    grid = "lcm" if grid is None and original_steps is not None else grid or recipe.grid
    gamma = recipe.gamma.default if gamma is None else gamma
    cfg = recipe.cfg.default if cfg is None else cfg
    return replace(
        recipe,
        grid=grid,
        given=recipe.given if grid == recipe.grid else (),
        original_steps=original_steps or recipe.original_steps,
        steps=(steps,),
        default_steps=steps,
        gamma=Span(gamma, gamma, gamma),
        cfg=Span(cfg, cfg, cfg),
    )


def lcm_recipe(original_steps: int = 50, bases: tuple[str, ...] = (), gamma: float = 1.0) -> Recipe:
    """LCM-LoRA's recipe for one that was distilled on a grid of `original_steps` points.

    bases: what it was distilled from, which is the recipe's where that has not all of them. gamma: what its objective
    is sampled with, 1 for LCM's.
    """
    recipe = load_recipes()[0]["lcm-lora"]
    steps = tuple(count for count in recipe.steps if count <= original_steps) or (original_steps,)
    return replace(
        recipe,
        gamma=replace(recipe.gamma, default=gamma, low=min(recipe.gamma.low, gamma)),
        bases=recipe.bases if set(bases) <= set(recipe.bases) else bases,
        original_steps=original_steps,
        steps=steps,
        default_steps=min(recipe.default_steps, steps[-1]),
    )


def described(recipe: Recipe) -> dict[str, Any]:
    """A recipe's settings by name, as JSON has them.

    Of each setting its default, and where the sources give more than that, under `…_range`, the least and the most;
    `steps_allowed` has all numbers of steps, and `levels` the recipe's own timesteps or σ. What a recipe leaves to the
    model, such as the shift, is not there.
    """
    found: dict[str, Any] = {"name": recipe.name, "bases": list(recipe.bases), "steps": recipe.default_steps}
    if len(recipe.steps) > 1:
        found["steps_allowed"] = list(recipe.steps)
    found["grid"] = recipe.grid
    if recipe.given:
        found["levels"] = list(recipe.given)
    if recipe.grid == "lcm":
        found["original_steps"] = recipe.original_steps
    for name in ("gamma", "cfg", "guidance", "shift", "strength"):
        span: Span | None = getattr(recipe, name)
        if span is not None:
            found[name] = span.default
            if span.low < span.high:
                found[f"{name}_range"] = [span.low, span.high]
    if recipe.expert:
        found["expert"] = recipe.expert
    return found


def summary(recipe: Recipe) -> str:
    """A recipe's usual run in a line: "4 steps on the trailing grid, gamma 0, cfg 1"."""
    steps = recipe.default_steps
    parts = [f"{steps} step{'s' if steps > 1 else ''} on {GRIDS[recipe.grid]}"]
    for name in ("gamma", "cfg", "guidance", "shift"):
        if (span := getattr(recipe, name)) is not None:
            parts.append(f"{name} {span.default:g}")
    return ", ".join(parts)
