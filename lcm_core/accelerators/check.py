"""What of a user's settings contradicts a recipe."""

from __future__ import annotations

from .recipe import GRIDS, Expert, Grid, Recipe

EXPERTS: dict[Expert, str] = {"high": "high-noise", "low": "low-noise"}


def contradictions(
    recipe: Recipe,
    *,
    steps: int | None = None,
    grid: Grid | None = None,
    gamma: float | None = None,
    cfg: float | None = None,
    guidance: float | None = None,
    shift: float | None = None,
    strength: float | None = None,
    expert: Expert | None = None,
) -> list[str]:
    """One line for each setting outside a recipe: its value, what the recipe takes and what to do; none if all fit.

    A setting left at None is not looked at. expert: the half of a pair of models that the LoRA is loaded on.
    """
    found = []
    if steps is not None and steps not in recipe.steps:
        takes, nearest = " or ".join(map(str, recipe.steps)), min(recipe.steps, key=lambda count: abs(count - steps))
        found.append(f"{steps} steps do not fit {recipe.label}, which takes {takes}; set steps to {nearest}")
    if grid is not None and grid != recipe.grid:
        found.append(
            f"{GRIDS.get(grid, grid)} does not fit {recipe.label}, which is sampled on {GRIDS[recipe.grid]}; "
            f"take {GRIDS[recipe.grid]}"
        )
    settings = {"gamma": gamma, "cfg": cfg, "guidance": guidance, "shift": shift, "strength": strength}
    for name, value in settings.items():
        span = getattr(recipe, name)
        if value is not None and span is not None and value not in span:
            found.append(
                f"{name} {value:g} does not fit {recipe.label}, which takes {span}; set {name} to {span.default:g}"
            )
    if expert is not None and recipe.expert is not None and expert != recipe.expert:
        found.append(
            f"{recipe.label} is loaded on the {EXPERTS[expert]} model and is for the {EXPERTS[recipe.expert]} one; "
            "load each file of the pair on its own model"
        )
    return found
