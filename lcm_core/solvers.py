"""Solvers of the probability-flow ODE over a NoiseSchedule: the Ψ of LCM distillation and the many-step baselines.

Both samplers share a signature: denoise(x, t) -> x̂₀ (B, …); x (B, …), noisy at timesteps[0]; timesteps strictly
descending and without a final zero; callback(i, t, x, x̂₀) after evaluation i. They return the x̂₀ of the last
timestep (a last step to σ = 0), in the dtype of x, and x itself if there are no timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .consistency import Callback, Denoise, predict_noise
from .schedule import NoiseSchedule, expand


def ddim_step(x0: Tensor, noise: Tensor, t_next: float | Tensor | None, schedule: NoiseSchedule) -> Tensor:
    """x at t_next = α(t_next)·x̂₀ + σ(t_next)·ε̂: DDIM (arXiv 2010.02502) eq. 12 with η = 0.

    x0 and noise are (B, …), t_next one timestep or (B,); returns (B, …) in the dtype of x0.
    The end has two readings. A negative t_next is timestep 0, so α² = ᾱ₀: what LCM distillation uses below its first
    grid point, and diffusers' set_alpha_to_one=False. None is the noiseless end, α = 1: set_alpha_to_one=True.
    """
    if t_next is None:
        return x0
    t_next = t_next.clamp(min=0) if isinstance(t_next, Tensor) else max(t_next, 0)
    alpha, sigma = schedule.alpha(t_next), schedule.sigma(t_next)
    return (expand(alpha, x0) * x0 + expand(sigma, x0) * noise).to(x0.dtype)


def ddim_sample(
    denoise: Denoise, x: Tensor, timesteps: Sequence[float], schedule: NoiseSchedule, callback: Callback | None = None
) -> Tensor:
    """DDIM, deterministic (η = 0): arXiv 2010.02502, eq. 12, from each timestep to the next in the list."""
    _check_descending(timesteps)
    for i, t in enumerate(timesteps):
        x0 = denoise(x, t).to(x.dtype)
        if callback is not None:
            callback(i, t, x, x0)
        if i + 1 == len(timesteps):
            return x0
        x = ddim_step(x0, predict_noise(x0, x, t, schedule, "sample"), timesteps[i + 1], schedule)
    return x


def dpmpp_2m_sample(
    denoise: Denoise, x: Tensor, timesteps: Sequence[float], schedule: NoiseSchedule, callback: Callback | None = None
) -> Tensor:
    """DPM-Solver++(2M): arXiv 2211.01095, Algorithm 2. The first step and the last are of first order.

    With λ = log(α/σ), h = λ_next − λ: x ← (σ_next/σ)·x − α_next·(e^{−h} − 1)·D, where
    D = x̂₀ + (x̂₀ − x̂₀_before)·h/(2·h_before) extrapolates the predictions to the middle of the step.
    """
    _check_descending(timesteps)
    t = torch.tensor(timesteps, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    lambdas = torch.log(alpha / sigma)
    h = lambdas.diff().tolist()
    x0_before: Tensor | None = None
    for i, level in enumerate(timesteps):
        x0 = denoise(x, level).to(x.dtype)
        if callback is not None:
            callback(i, level, x, x0)
        if i + 1 == len(timesteps):
            return x0
        extrapolated = x0
        if x0_before is not None and math.isfinite(h[i]):
            extrapolated = x0 + (x0 - x0_before) * (h[i] / (2 * h[i - 1]))
        decay, gain = expand(sigma[i + 1] / sigma[i], x), expand(-alpha[i + 1] * math.expm1(-h[i]), x)
        x = (decay * x + gain * extrapolated).to(x.dtype)
        x0_before = x0
    return x


def _check_descending(timesteps: Sequence[float]) -> None:
    for t, t_next in pairwise(timesteps):
        if not t_next < t:
            raise ValueError(f"timestep {t} is followed by {t_next}; list each timestep once, from noisy to clean")
