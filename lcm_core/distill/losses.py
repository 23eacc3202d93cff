"""The objectives of latent consistency distillation (LCD) and consistency fine-tuning (LCF): arXiv 2310.04378.

A model is called as model(x, t, cond, omega): x (B, C, H, W), timesteps t (B,), cond a tuple of tensors (B, ...) and
omega (B,), the guidance ω for a model that takes it as an input, which is None for a teacher. It returns its
prediction (B, C, H, W), of the kind that `prediction` names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ..consistency import Prediction, consistency_function, predict_noise, predict_x0
from ..guidance import guided
from ..schedule import NoiseSchedule, expand
from ..solvers import ddim_step

Cond: TypeAlias = tuple[Tensor, ...]
Model = Callable[[Tensor, Tensor, Cond, Tensor | None], Tensor]
Distance = Callable[[Tensor, Tensor], Tensor]
Network = Callable[[Tensor, Tensor], Tensor]  # a model with its cond given
Solver = Callable[[Network, Tensor, Tensor, Tensor, NoiseSchedule, Prediction], Tensor]


def huber(a: Tensor, b: Tensor, c: float = 0.001) -> Tensor:
    """Pseudo-Huber distance √((a − b)² + c²) − c, averaged: l2 near zero, l1 away from it."""
    return (((a - b) ** 2 + c**2).sqrt() - c).mean()


def distance_of(name: str, huber_c: float = 0.001) -> Distance:
    """The distance d of the objectives by its name, `huber` or `l2` (the mean square)."""
    return F.mse_loss if name == "l2" else partial(huber, c=huber_c)


@dataclass(frozen=True, eq=False)
class Draw:
    """What a step draws for its batch: from timestep t to t_next, (B,) each, guidance ω (B,) and noise like z."""

    t: Tensor
    t_next: Tensor
    omega: Tensor
    noise: Tensor

    def __getitem__(self, rows: slice) -> Draw:
        return Draw(self.t[rows], self.t_next[rows], self.omega[rows], self.noise[rows])


def draw_timesteps(
    batch: int, *, links: int, train_steps: int = 1000, on_grid: bool = True, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """(t_{n+k}, t_n), each (B,), with skipping k = train_steps // links.

    On the grid t_{n+k} is one of {k, 2k, ...} − 1, as in diffusers' scripts; off it any timestep from 1, as in
    Algorithm 1 of arXiv 2310.04378. t_n = t_{n+k} − k, at least 0. ValueError for links outside 1 … train_steps.
    """
    if not 1 <= links <= train_steps:
        raise ValueError(f"links {links} must be in 1 … {train_steps}, the model's timesteps; LCM uses 50")
    k = train_steps // links
    if on_grid:
        t = (torch.randint(1, links + 1, (batch,), generator=generator) * k - 1).clamp(min=1)
    else:
        t = torch.randint(1, train_steps, (batch,), generator=generator)
    return t, (t - k).clamp(min=0)


def noised(z: Tensor, noise: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """x_t = α(t)·z + σ(t)·ε, one timestep an image."""
    return expand(schedule.alpha(t), z) * z + expand(schedule.sigma(t), z) * noise


def ddim(
    network: Network, x: Tensor, t: Tensor, t_next: Tensor, schedule: NoiseSchedule, prediction: Prediction
) -> Tensor:
    """Ψ as one DDIM step (arXiv 2010.02502), which is also DPM-Solver++ of first order: one evaluation."""
    output = network(x, t)
    x0 = predict_x0(output, x, t, schedule, prediction)
    return ddim_step(x0, predict_noise(output, x, t, schedule, prediction), t_next, schedule)


def dpmpp_2s(
    network: Network, x: Tensor, t: Tensor, t_next: Tensor, schedule: NoiseSchedule, prediction: Prediction
) -> Tensor:
    """Ψ as one step of DPM-Solver++(2S), arXiv 2211.01095, Algorithm 1, through the middle timestep: two evaluations.

    With λ = log(α/σ), s = ⌊(t + t_next)/2⌋ and r = (λ_s − λ_t)/(λ_next − λ_t), the step is that of first order on
    x̂₀(x_t) + (x̂₀(x_s) − x̂₀(x_t))/(2r), which at r = 1/2 is x̂₀(x_s), the midpoint. It is of first order where λ_t is
    infinite, at the last timestep of a zero-terminal-SNR schedule.
    """
    middle = (t + t_next) // 2
    x0 = predict_x0(network(x, t), x, t, schedule, prediction)
    x_middle = ddim_step(x0, predict_noise(x0, x, t, schedule, "sample"), middle, schedule)
    x0_middle = predict_x0(network(x_middle, middle), x_middle, middle, schedule, prediction)
    start, half, end = ((schedule.alpha(s) / schedule.sigma(s)).log() for s in (t, middle, t_next))
    weight = (end - start) / (2 * (half - start))
    x0 = x0 + expand(torch.where(weight.isfinite(), weight, 0.0), x0) * (x0_middle - x0)
    return ddim_step(x0, predict_noise(x0, x, t, schedule, "sample"), t_next, schedule)


SOLVERS: dict[str, Solver] = {"ddim": ddim, "dpm++": dpmpp_2s}


def lcd_loss(
    student: Model,
    teacher: Model,
    target: Model,
    z: Tensor,
    cond: Cond,
    uncond: Cond,
    draw: Draw,
    *,
    schedule: NoiseSchedule,
    prediction: Prediction = "epsilon",
    solver: Solver = ddim,
    distance: Distance = huber,
) -> Tensor:
    """Latent consistency distillation, Algorithm 1 of LCM-LoRA (arXiv 2311.05556): a scalar.

    x_t = α(t)·z + σ(t)·ε; x̂ = x_t + (1 + ω)·Ψ(x_t, c) − ω·Ψ(x_t, ∅) is the guided teacher's way to t_next;
    L = d(f_θ(x_t, ω, c, t), f_θ⁻(x̂, ω, c, t_next)). `solver` is x_t + Ψ, of one condition. The teacher sees cond and
    uncond in one batch. Teacher and target get no gradient and go first, when the student has no activations to keep.
    """
    t, t_next = draw.t, draw.t_next
    x = noised(z, draw.noise, t, schedule)
    with torch.no_grad():
        both = tuple(torch.cat(pair) for pair in zip(cond, uncond, strict=True))

        def network(x: Tensor, t: Tensor) -> Tensor:
            return teacher(x, t, both, None)

        x2, t2, t2_next = (torch.cat([v, v]) for v in (x, t, t_next))
        with_cond, without = solver(network, x2, t2, t2_next, schedule, prediction).chunk(2)
        x_next = guided(with_cond, without, 1 + draw.omega)
        goal = consistency_function(target(x_next, t_next, cond, draw.omega), x_next, t_next, schedule, prediction)
    return distance(consistency_function(student(x, t, cond, draw.omega), x, t, schedule, prediction), goal)


def lcf_loss(
    student: Model,
    target: Model,
    z: Tensor,
    cond: Cond,
    draw: Draw,
    *,
    schedule: NoiseSchedule,
    prediction: Prediction = "epsilon",
    distance: Distance = huber,
) -> Tensor:
    """Latent consistency fine-tuning (arXiv 2310.04378, Algorithm 4): no teacher, one noise makes both points."""
    t, t_next, omega = draw.t, draw.t_next, draw.omega
    x, x_next = noised(z, draw.noise, t, schedule), noised(z, draw.noise, t_next, schedule)
    with torch.no_grad():
        goal = consistency_function(target(x_next, t_next, cond, omega), x_next, t_next, schedule, prediction)
    return distance(consistency_function(student(x, t, cond, omega), x, t, schedule, prediction), goal)


def already_consistent(
    teacher: Model, z: Tensor, cond: Cond, noise: Tensor, *, schedule: NoiseSchedule, prediction: Prediction
) -> bool:
    """Whether a teacher draws a sample in one step, as an LCM does, where a diffusion model gives the mean of many.

    From the last timestep a diffusion model's x̂₀ is the posterior mean: paler than the data z, and z = x̂₀ + something
    uncorrelated. An LCM's x̂₀ has the data's contrast and only partly agrees with z. A hint, for a warning.
    """
    t = torch.full((len(z),), schedule.steps - 1)
    x = noised(z, noise, t, schedule)
    with torch.no_grad():
        x0 = predict_x0(teacher(x, t, cond, None), x, t, schedule, prediction)
    x0, z = (v - v.mean((0, 2, 3), keepdim=True) for v in (x0, z))
    drawn, agreed, contrast = (x0 * x0).sum(), (x0 * z).sum(), (z * z).sum()
    return bool(0.85 * contrast < drawn < 1.4 * contrast and agreed < 0.8 * drawn)
