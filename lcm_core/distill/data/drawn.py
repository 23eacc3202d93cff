"""Latents that the teacher draws itself, where there are no pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from ...consistency import Prediction, predict_x0
from ...guidance import guided
from ...noise import step_noise
from ...schedule import Schedule, trailing_levels
from ...solvers import ddim_sample
from ..losses import Cond, Model


def sample_latents(
    teacher: Model,
    cond: Cond,
    uncond: Cond,
    shape: tuple[int, ...],
    *,
    schedule: Schedule,
    prediction: Prediction = "epsilon",
    scale: float = 7.5,
    steps: int = 25,
    seed: int = 0,
    first: int = 0,
) -> Tensor:
    """Latents (B, …) that the teacher draws for prompts, by DDIM under guidance, to distil it without data.

    cond and uncond are tuples of tensors (B, ...); without uncond, (), the teacher is not guided, whatever `scale`.
    shape is a latent's, such as (C, H, W). Of a flow DDIM is Euler's method. `first` is the number of the first image
    among all that are drawn in batches: image i depends on (seed, i) and its own prompt alone.
    """
    batch = len(cond[0])
    both = tuple(torch.cat(pair) for pair in zip(cond, uncond, strict=True)) if uncond else cond

    def denoise(x: Tensor, t: float) -> Tensor:
        rows = torch.cat([x, x]) if uncond else x
        output = teacher(rows, torch.full((len(rows),), t, device=x.device), both, None).to(x.dtype)
        if uncond:
            with_cond, without = output.chunk(2)
            output = guided(with_cond, without, scale)
        return predict_x0(output, x, t, schedule, prediction)

    x = step_noise((batch, *shape), seed, 0, range(first, first + batch)).to(cond[0].device)
    with torch.no_grad():
        return ddim_sample(denoise, x, trailing_levels(steps, schedule), schedule)
