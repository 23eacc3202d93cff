"""How much guidance a teacher has use for, from its predictions on a few samples of the data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

import torch
from torch import Tensor

from ..consistency import Prediction, predict_x0
from ..schedule import Schedule
from .losses import Cond, Model, noised

SHARES = (0.6, 0.75, 0.9, 1.0)  # of the timesteps: where a prompt, and so guidance, decides what there will be
FAR = 3.0  # times the useful guidance, above or below


@torch.no_grad()
def useful_guidance(
    teacher: Model,
    batches: Iterable[tuple[Tensor, Cond, Cond, Tensor]],
    *,
    schedule: Schedule,
    prediction: Prediction = "epsilon",
) -> float:
    """The ω at which guided predictions x̂₀ from noise have as much contrast as the data; inf if prompts change nothing.

    batches: latents z (B, …) with cond, uncond and noise like z; in all about 16 samples. Contrast is the mean square
    of what is left without the mean of each channel. x̂₀ is the mean of what a noisy sample may have been, and paler
    than any; guidance, x̂₀ + ω·d with d = x̂₀ − x̂₀(∅), adds contrast, and what it adds beyond the data's is no picture
    of it, but burnt. So ω solves ‖x̂₀ + ω·d‖² = ‖z‖², at each of SHARES of the timesteps; the median counts. It is 0
    where x̂₀ has the data's contrast by itself.
    """
    sums = {share: torch.zeros(3, dtype=torch.float64) for share in SHARES}
    for z, cond, uncond, noise in batches:
        for share, total in sums.items():
            t = schedule.level(torch.full((len(z),), share, dtype=torch.float64))
            x = noised(z, noise, t, schedule)
            with_cond, without = (
                predict_x0(teacher(x, t, c, None).to(z), x, t, schedule, prediction) for c in (cond, uncond)
            )
            data, c, d = (v - v.mean((0, *range(2, v.ndim)), keepdim=True) for v in (z, with_cond, with_cond - without))
            total += torch.stack([(d * d).sum(), (c * d).sum(), (c * c).sum() - (data * data).sum()]).double().cpu()
    return statistics.median(crossing(*total.tolist()) for total in sums.values())


def crossing(square: float, cross: float, excess: float) -> float:
    """The ω ≥ 0 of square·ω² + 2·cross·ω + excess = 0 from which on it is above 0; 0 if that is always."""
    if excess >= 0:
        return 0.0
    if square <= 0:
        return math.inf
    return (-cross + math.sqrt(cross * cross - square * excess)) / square


def advice(omega: tuple[float, float], useful: float) -> str | None:
    """What to say of a range of ω that is far off the useful guidance, with the range to use instead; else None."""
    middle = sum(omega) / 2
    if not math.isfinite(useful) or useful / FAR <= middle <= useful * FAR:
        return None
    low, high = (float(f"{times * useful:.2g}") for times in (0.5, 2))
    return (
        f"omega {omega[0]:g} to {omega[1]:g} is far from {useful:.2g}, where this teacher's predictions have the "
        f"contrast of the data; --omega {low:g} {high:g} would fit it, and what is far above comes out burnt"
    )
