"""The objectives of latent consistency distillation (LCD) and consistency fine-tuning (LCF): arXiv 2310.04378.

A model is called as model(x, t, cond) with x (B, C, H, W), timesteps t (B,) and cond a tuple of tensors (B, ...);
it returns its prediction (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..consistency import Prediction, consistency_function, predict_noise, predict_x0
from ..guidance import guided
from ..schedule import NoiseSchedule, expand
from ..solvers import ddim_step

Model = Callable[[Tensor, Tensor, tuple[Tensor, ...]], Tensor]
Distance = Callable[[Tensor, Tensor], Tensor]


def huber(a: Tensor, b: Tensor, c: float = 0.001) -> Tensor:
    """Pseudo-Huber distance √((a − b)² + c²) − c, averaged: l2 near zero, l1 away from it."""
    return (((a - b) ** 2 + c**2).sqrt() - c).mean()


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
        t = torch.randint(1, links + 1, (batch,), generator=generator) * k - 1
    else:
        t = torch.randint(1, train_steps, (batch,), generator=generator)
    return t, (t - k).clamp(min=0)


def noised(z: Tensor, noise: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """x_t = α(t)·z + σ(t)·ε, one timestep an image."""
    return expand(schedule.alpha(t), z) * z + expand(schedule.sigma(t), z) * noise


def lcd_loss(
    student: Model,
    teacher: Model,
    target: Model,
    z: Tensor,
    cond: tuple[Tensor, ...],
    uncond: tuple[Tensor, ...],
    *,
    t: Tensor,
    t_next: Tensor,
    omega: Tensor,
    noise: Tensor,
    schedule: NoiseSchedule,
    prediction: Prediction = "epsilon",
    distance: Distance = huber,
) -> Tensor:
    """Latent consistency distillation, Algorithm 1 of LCM-LoRA (arXiv 2311.05556): a scalar.

    x_t = α(t)·z + σ(t)·ε; Ψ, one DDIM step of the teacher under guidance cond + ω·(cond − uncond), leads to x_{t_next};
    L = d(f_θ(x_t, t), f_θ⁻(x_{t_next}, t_next)). The teacher sees cond and uncond in one batch; neither it nor the
    target gets a gradient. t, t_next and omega are (B,); noise is like z.
    """
    x = noised(z, noise, t, schedule)
    online = consistency_function(student(x, t, cond), x, t, schedule, prediction)
    with torch.no_grad():
        both = tuple(torch.cat(pair) for pair in zip(cond, uncond, strict=True))
        with_cond, without = teacher(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        output = guided(with_cond, without, 1 + omega)
        x0 = predict_x0(output, x, t, schedule, prediction)
        eps = predict_noise(output, x, t, schedule, prediction)
        x_next = ddim_step(x0, eps, t_next, schedule)
        goal = consistency_function(target(x_next, t_next, cond), x_next, t_next, schedule, prediction)
    return distance(online, goal)


def lcf_loss(
    student: Model,
    target: Model,
    z: Tensor,
    cond: tuple[Tensor, ...],
    *,
    t: Tensor,
    t_next: Tensor,
    noise: Tensor,
    schedule: NoiseSchedule,
    prediction: Prediction = "epsilon",
    distance: Distance = huber,
) -> Tensor:
    """Latent consistency fine-tuning (arXiv 2310.04378, Algorithm 4): no teacher, one noise makes both points."""
    x, x_next = noised(z, noise, t, schedule), noised(z, noise, t_next, schedule)
    online = consistency_function(student(x, t, cond), x, t, schedule, prediction)
    with torch.no_grad():
        goal = consistency_function(target(x_next, t_next, cond), x_next, t_next, schedule, prediction)
    return distance(online, goal)
