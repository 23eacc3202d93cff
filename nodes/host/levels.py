"""The levels at which a run evaluates a MODEL, as sigmas of the host; and the flow that they are shares of."""

import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...lcm_core.accelerators import Recipe, levels
from ...lcm_core.schedule import Flow, NoiseSchedule, custom_timesteps, lcm_timesteps
from ..checks import numbers
from .model_sampling import RANGE, defined_by

# By the host's class that says what a timestep is: a flow's shift of what the class calls one, and the reverse. Flux's
# is μ, with s = e^μ.
SHIFTS: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "ModelSamplingDiscreteFlow": (float, float),
    "ModelSamplingFlux": (math.exp, math.log),
}


def flow_of(sampling) -> Flow | None:
    """The flow that a model's sampling walks, with its shift; None for a sampling that is none."""
    known = SHIFTS.get(defined_by(sampling, "timestep"))
    return known and Flow(known[0](sampling.shift))


def with_shift(model, shift: float):
    """A clone of the MODEL of a flow with this shift, as the host's ModelSampling nodes make it; all else is kept."""
    sampling = model.get_model_object("model_sampling")
    patched = type(sampling)(model.model.model_config)
    names = vars(sampling).keys() & inspect.signature(sampling.set_parameters).parameters
    own = {name: vars(sampling)[name] for name in names}
    patched.set_parameters(**own | {"shift": SHIFTS[defined_by(sampling, "timestep")][1](shift)})
    model = model.clone()
    model.add_object_patch("model_sampling", patched)
    return model


def run_sigmas(model, run: Recipe, strength: float = 1.0, timesteps: str = "") -> Tensor:
    """The host's sigmas (n + 1,) of a run and a final 0, on the model's own schedule.

    `run` is a recipe as `settled` makes it. The LCM grid takes `strength` as diffusers does, all steps below it; of
    other levels the last ⌊n·strength⌋ are left, as diffusers leaves them. The user's `timesteps`, if that text is not
    blank, are in their place: thousandths of the model's range, 0 … 999, whatever the length of its table.
    """
    sampling = model.get_model_object("model_sampling")
    table = sampling.sigmas
    grid = {"original_steps": run.original_steps, "strength": strength}
    if timesteps.strip():
        written = custom_timesteps(numbers("timesteps", timesteps, int, RANGE), train_steps=RANGE, **grid)
        places = ((torch.tensor(written, dtype=torch.float64) + 1) * (len(table) / RANGE) - 1).clamp(min=0)
        below, above = (table[edge.long().to(table.device)].cpu() for edge in (places.floor(), places.ceil()))
        sigmas = below ** (1 - places.frac()) * above ** places.frac()
    elif run.grid == "lcm":
        sigmas = table[lcm_timesteps(run.default_steps, train_steps=len(table), **grid)].cpu()
    else:
        if run.default_steps > RANGE:
            raise ValueError(f"steps {run.default_steps} is more than {RANGE}; 4 or 8 are usual of an accelerator")
        flow = flow_of(sampling)
        found = levels(run, None, flow or NoiseSchedule(1 / (1 + table.double() ** 2)))
        sigmas = torch.tensor(found, dtype=torch.float64) if flow else table[found].cpu()
        kept = int(len(found) * strength)
        if not kept:
            raise ValueError(
                f"denoise {strength:g} leaves none of the {len(found)} steps; raise it to "
                f"{math.ceil(100 / len(found)) / 100:g} or more"
            )
        sigmas = sigmas[len(found) - kept :]
    return torch.cat([sigmas.float(), torch.zeros(1)])
