"""Solvers of the probability-flow ODE over a schedule: the Ψ of LCM distillation and the many-step baselines.

A Ψ is one step, solver(network, x, t, t_next, schedule, prediction) -> x at t_next, (B, …): network(x, t) is a model
with its condition given, t and t_next are (B,). SOLVERS has them by name.

Both samplers share a signature: denoise(x, t) -> x̂₀ (B, …); x (B, …), noisy at timesteps[0]; timesteps strictly
descending and without a final zero; callback(i, t, x, x̂₀) after evaluation i. They return the x̂₀ of the last
timestep (a last step to σ = 0), in the dtype of x, and x itself if there are no timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from .consistency import Callback, Denoise, Prediction, predict_noise, predict_x0
from .schedule import FlowSchedule, NoiseSchedule, Schedule, expand

Network: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Solver: TypeAlias = Callable[[Network, Tensor, Tensor, Tensor, Schedule, Prediction], Tensor]


def ddim_step(x0: Tensor, noise: Tensor, t_next: float | Tensor | None, schedule: Schedule) -> Tensor:
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


def ddim(network: Network, x: Tensor, t: Tensor, t_next: Tensor, schedule: Schedule, prediction: Prediction) -> Tensor:
    """Ψ as one DDIM step (arXiv 2010.02502): one evaluation. Of a flow it is Euler's step x + (σ_next − σ)·v.

    It is also DPM-Solver++ of first order.
    """
    output = network(x, t)
    x0 = predict_x0(output, x, t, schedule, prediction)
    return ddim_step(x0, predict_noise(output, x, t, schedule, prediction), t_next, schedule)


def dpmpp_2s(
    network: Network, x: Tensor, t: Tensor, t_next: Tensor, schedule: Schedule, prediction: Prediction
) -> Tensor:
    """Ψ as one step of DPM-Solver++(2S), arXiv 2211.01095, Algorithm 1, through the middle timestep: two evaluations.

    With λ = log(α/σ), s the middle of t and t_next (rounded down to a timestep; of a flow the middle σ) and
    r = (λ_s − λ_t)/(λ_next − λ_t), the step is that of first order on x̂₀(x_t) + (x̂₀(x_s) − x̂₀(x_t))/(2r), which at
    r = 1/2 is x̂₀(x_s), the midpoint. It is of first order where λ is infinite: at the last timestep of a
    zero-terminal-SNR schedule, and at both ends of a flow.
    """
    middle = (t + t_next) / 2 if isinstance(schedule, FlowSchedule) else (t + t_next) // 2
    x0 = predict_x0(network(x, t), x, t, schedule, prediction)
    x_middle = ddim_step(x0, predict_noise(x0, x, t, schedule, "sample"), middle, schedule)
    x0_middle = predict_x0(network(x_middle, middle), x_middle, middle, schedule, prediction)
    start, half, end = ((schedule.alpha(s) / schedule.sigma(s)).log() for s in (t, middle, t_next))
    weight = (end - start) / (2 * (half - start))
    x0 = x0 + expand(torch.where(weight.isfinite(), weight, 0.0), x0) * (x0_middle - x0)
    return ddim_step(x0, predict_noise(x0, x, t, schedule, "sample"), t_next, schedule)


def heun(network: Network, x: Tensor, t: Tensor, t_next: Tensor, schedule: Schedule, prediction: Prediction) -> Tensor:
    """Ψ as Heun's step of a flow: x + (σ_next − σ)·(v(x, σ) + v(x_E, σ_next))/2, x_E being Euler's; two evaluations.

    arXiv 2206.00364, Algorithm 1, with η = 0: where σ_next is 0 it is Euler's step. ValueError for a diffusion, whose
    step of second order is dpm++.
    """
    if not isinstance(schedule, FlowSchedule):
        raise ValueError("solver heun is for flow models; use dpm++, the step of second order of this model")

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        output = network(x, t)
        return predict_noise(output, x, t, schedule, prediction) - predict_x0(output, x, t, schedule, prediction)

    step = expand(t_next - t, x)
    start = velocity(x, t)
    end = velocity((x + step * start).to(x.dtype), t_next)
    share = expand(torch.where(t_next > 0, 0.5, 0.0).to(torch.float64), x)
    return (x + step * ((1 - share) * start + share * end)).to(x.dtype)


SOLVERS: dict[str, Solver] = {"ddim": ddim, "dpm++": dpmpp_2s, "heun": heun}


def ddim_sample(
    denoise: Denoise, x: Tensor, timesteps: Sequence[float], schedule: Schedule, callback: Callback | None = None
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
