"""An acceleration LoRA's recipe: found where it is loaded, followed and checked where it is sampled."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..lcm_core.accelerators import (
    Recipe,
    Recognition,
    contradictions,
    described,
    read_sampling,
    sampling_record,
    settled,
    summary,
)
from ..lcm_core.accelerators.check import EXPERTS
from ..lcm_core.accelerators.recipe import Expert, Grid
from ..lcm_core.accelerators.recognition import TRAINER
from ..lcm_core.lora.sampling import recipe_of, recorded
from ..lcm_core.text import listed
from .host.levels import flow_of, run_sigmas, with_shift
from .host.lora_files import sha256_of
from .host.lora_model import LoRATensors
from .host.recipes import (
    Accelerator,
    accelerators_on,
    base_of,
    choices,
    expert_of,
    recipe_on,
    recipes,
    with_accelerator,
)
from .host.report import Said

AUTO, NONE = "auto", "none"
MOST_CFG = 2.0


def found_recipe(model, lora: LoRATensors, name: str, choice: str) -> tuple[Recipe | None, dict[str, str], Said]:
    """(the recipe of a file's LORA_MODEL on a MODEL, what its vector records of it, why).

    choice: AUTO, NONE or one of `choices`.
    """
    if choice == NONE:
        return None, {}, Said(("no recipe, as chosen",))
    base = base_of(model)
    found = recipe_of(name, lora.file, sha256=sha256_of(lora), base=base, recipes=recipes())
    if choice != AUTO:
        return chosen_recipe(choices()[choice], found, base)
    if found.recipe is not None:
        return found.recipe, recorded(found), Said((f"{found.recipe.label}: {found.why}",))
    if found.evidence is not None:
        return None, {}, Said((), (f"no recipe for {name}: {found.why}",))
    if TRAINER in lora.file.metadata:
        style = (
            f"{name} has the metadata of a LoRA for a style or a subject, and nothing names it an accelerator; load it "
            "with Load LoRA Vector, and an accelerator here, or choose its recipe"
        )
        return None, {}, Said((), (style,))
    return None, {}, Said((f"recipe {found.why}",))


def chosen_recipe(recipe: Recipe, found: Recognition, base: str | None) -> tuple[Recipe, dict[str, str], Said]:
    """The same of a recipe that the user chose: with the file's own number of steps, if it is known to be of it."""
    if found.recipe is not None and found.recipe.name == recipe.name:
        recipe = found.recipe
    fits = base is None or any(name in base for name in recipe.bases)
    other = f"{recipe.label} is for {', '.join(recipe.bases)} and the model is {base}; choose another recipe or model"
    return recipe, sampling_record(recipe), Said((f"{recipe.label}, as chosen",), () if fits else (other,))


def recipe_report(found: Recognition) -> list[str]:
    """How a LoRA is sampled, a fact a line: its recipe, by which evidence, its settings, and what else they may be."""
    if (recipe := found.recipe) is None:
        return [f"recipe: {found.why}"]
    expert = f", on the {EXPERTS[recipe.expert]} model" if recipe.expert else ""
    ranges = {name.removesuffix("_range"): value for name, value in described(recipe).items() if "_range" in name}
    takes = [f"{name} {low:g} to {high:g}" for name, (low, high) in ranges.items()]
    if len(recipe.steps) > 1:
        takes.insert(0, f"{listed(recipe.steps, 99)} steps")
    return [
        f"recipe: {recipe.label}, for {', '.join(recipe.bases)}: {found.why}",
        f"sampled: {summary(recipe)}, strength {recipe.strength.default:g}{expert}",
        *([f"takes: {', '.join(takes)}"] if takes else []),
        *([f"note: {recipe.note}"] if recipe.note else []),
    ]


def with_recipe(model, recipe: Recipe | None, name: str, strength: float):
    """(a clone of the MODEL that carries the recipe of a LoRA on it, what is said of it)."""
    if recipe is None:
        return model, Said()
    if strength <= 0:
        return model, Said((f"strength {strength:g} adds no accelerator, so its recipe is not followed",))
    lines = [f"LCM Sampler left on auto makes {summary(recipe)}", *([recipe.note] if recipe.note else [])]
    warnings = contradictions(recipe, strength=strength, expert=expert_of(model))
    if strength in recipe.strength and strength != recipe.strength.default:
        lines.append(f"strength {strength:g}, the recipe suggests {recipe.strength.default:g}")
    if earlier := accelerators_on(model):
        warnings.append(
            f"{earlier[-1].file} ({earlier[-1].recipe.label}) is on this model already, and two accelerators spoil "
            "each other; keep one"
        )
    return with_accelerator(model, Accelerator(name, recipe)), Said(tuple(lines), tuple(warnings))


def with_recipes_shift(model, recipe: Recipe | None):
    """(the MODEL with the recipe's shift, what is said of it): a flow's, unless a node before set one."""
    flow = flow_of(model.get_model_object("model_sampling"))
    if recipe is None or recipe.shift is None or flow is None:
        return model, Said()
    if "model_sampling" in model.object_patches:
        kept = f"shift {flow.shift:g}, as the node before set it"
        return model, Said((kept,), tuple(contradictions(recipe, shift=flow.shift)))
    shift = recipe.shift.default
    return with_shift(model, shift), Said((f"shift {shift:g}, in place of the model's {flow.shift:g}",))


def with_vectors_recipe(model, metadata: Mapping[str, str], strength: float):
    """(a clone of the MODEL that carries the recipe in a vector's metadata, if there is one, what is said of it)."""
    try:
        recipe = read_sampling(metadata)
    except ValueError as error:
        return model, Said((), (str(error),))
    model, said = with_recipe(model, recipe, "a vector", strength)
    return model, (Said((f"{recipe.label}, as the vector's metadata says",)) if recipe else Said()) + said


def run_of(
    model, steps: int = 0, original_steps: int = 0, gamma: float = -1.0, cfg: float = -1.0, grid: str = AUTO
) -> Recipe:
    """A run's settings: the inputs', and the recipe's of the MODEL where they are 0, below 0 or AUTO."""
    chosen: Grid | None = None if grid == AUTO else grid  # type: ignore[assignment]
    return settled(
        recipe_on(model),
        steps=steps or None,
        grid=chosen,
        original_steps=original_steps or None,
        gamma=None if gamma < 0 else gamma,
        cfg=None if cfg < 0 else cfg,
    )


def advice(
    model, run: Recipe, sigmas: Tensor, strength: float, timesteps: str, positive: list, expert: Expert | None
) -> list[str]:
    """What of a run contradicts the MODEL's recipe, a line each; sigmas are `run_sigmas`'.

    expert: the half of a pair of models whose steps these are.
    """
    recipe = recipe_on(model)
    if recipe is None:
        cfg = run.cfg.default
        burns = f"cfg {cfg:g} burns the picture: an LCM has its guidance inside; use 1, and {MOST_CFG:g} at most"
        return [burns] if cfg > MOST_CFG else []
    own = bool(timesteps.strip())
    flow = flow_of(model.get_model_object("model_sampling"))
    return contradictions(
        recipe,
        steps=None if own else run.default_steps,
        grid=None if own or on_recipes_levels(model, recipe, run, sigmas, strength) else run.grid,
        gamma=run.gamma.default if len(sigmas) > 2 else None,
        cfg=run.cfg.default,
        guidance=next((options["guidance"] for _, options in positive if "guidance" in options), None),
        shift=flow.shift if flow and recipe.grid != "sigmas" else None,
        expert=expert or expert_of(model),
    )


def on_recipes_levels(model, recipe: Recipe, run: Recipe, sigmas: Tensor, strength: float) -> bool:
    """Whether a run's levels are the recipe's, on whatever grid: two steps are 999, 499 on both."""
    try:
        wanted = run_sigmas(model, settled(recipe, steps=run.default_steps), strength)
    except ValueError:
        return run.grid == recipe.grid
    return wanted.shape == sigmas.shape and torch.allclose(wanted, sigmas, rtol=1e-3)


def expert_of_part(steps: int, start: int, end: int) -> Expert | None:
    """The half of a pair of models that a part of a run's steps is for; None for a whole run."""
    return "low" if start > 0 else "high" if end < steps else None


def said_of(
    model, run: Recipe, sigmas: Tensor, strength: float, timesteps: str = "", positive=(), expert: Expert | None = None
) -> Said:
    """What a sampling node says of a run: whose recipe, steps, levels, gamma and cfg; and `advice`."""
    recipe = recipe_on(model)
    whose = recipe.label if recipe else "without a recipe, as an LCM-LoRA"
    told = summary(replace(run, guidance=None, shift=None))
    if timesteps.strip():
        told = f"your own timesteps, gamma {run.gamma.default:g}, cfg {run.cfg.default:g}"
    return Said((f"{whose}: {told}",), tuple(advice(model, run, sigmas, strength, timesteps, positive, expert)))
