"""What the objectives' losses are made of: the models and the batch, the noised points, the teacher's step.

A model is called as model(x, t, cond, omega): x (B, …), timesteps t (B,), cond a tuple of tensors (B, ...) and omega
(B,), the guidance ω for a model that takes it as an input, which is None for a teacher. It returns its prediction
(B, …), of the kind that `prediction` names. A flow model's t is σ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from ..consistency import Prediction, consistency_function, predict_noise, predict_x0
from ..guidance import guided
from ..schedule import FlowSchedule, Schedule, expand
from ..solvers import Solver, ddim, ddim_step
from .distances import DISTANCES, huber

Cond: TypeAlias = tuple[Tensor, ...]
Batch: TypeAlias = tuple[Tensor, Cond, Cond]  # z, cond, uncond
Model = Callable[[Tensor, Tensor, Cond, Tensor | None], Tensor]
Distance = Callable[[Tensor, Tensor], Tensor]


def distance_of(name: str, c: float = 0.001) -> Distance:
    """The distance d of the objectives by its name in DISTANCES, with the scale c."""
    return lambda a, b: DISTANCES[name](a, b, c)


@dataclass(frozen=True, eq=False)
class Draw:
    """What a step draws for its batch: from timestep t to t_next, (B,) each, guidance ω (B,) and noise like z.

    `uniform` (B,) is one more even number in [0, 1) an image, for what an objective itself draws. `step` counts the
    steps of the objective, from 0.
    """

    t: Tensor
    t_next: Tensor
    omega: Tensor
    noise: Tensor
    uniform: Tensor | None = None
    step: int = 0

    def __getitem__(self, rows: slice) -> Draw:
        uniform = None if self.uniform is None else self.uniform[rows]
        return Draw(self.t[rows], self.t_next[rows], self.omega[rows], self.noise[rows], uniform, self.step)


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


def draw_sigmas(
    batch: int, schedule: FlowSchedule, *, links: int, on_grid: bool = True, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """(σ_{n+k}, σ_n) of a flow, float64 (B,) each: σ(u) and σ(u − 1/links), at least σ(0) = 0, under the model's shift.

    On the grid u is one of {1, 2, …, links}/links, those of `lcm_sigmas`; off it any in (0, 1].
    """
    if links < 1:
        raise ValueError(f"links {links} must be at least 1; LCM uses 50")
    if on_grid:
        share = torch.randint(1, links + 1, (batch,), generator=generator) / torch.tensor(links, dtype=torch.float64)
    else:
        share = 1 - torch.rand(batch, generator=generator, dtype=torch.float64)
    return schedule.level(share), schedule.level((share - 1 / links).clamp(min=0))


def noised(z: Tensor, noise: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """x_t = α(t)·z + σ(t)·ε, one timestep an image."""
    return expand(schedule.alpha(t), z) * z + expand(schedule.sigma(t), z) * noise


@dataclass(frozen=True, eq=False)
class Problem:
    """A batch to learn from: student, teacher and target, latents z (B, …), their conditions and what was drawn.

    With an empty `uncond` the teacher is not guided: its own prediction counts. `links` are the steps of the teacher's
    trajectory. The student is evaluated once, at (x, t), when `predicted` is first asked for: an objective asks last,
    so that teacher and target go first, without gradient, when the student has no activations to keep.
    """

    student: Model
    teacher: Model
    target: Model
    z: Tensor
    cond: Cond
    uncond: Cond
    draw: Draw
    schedule: Schedule
    prediction: Prediction = "epsilon"
    solver: Solver = ddim
    distance: Distance = huber
    links: int = 50

    @cached_property
    def x(self) -> Tensor:
        """x_t, the latents noised to the draw's t."""
        return self.noised(self.draw.t)

    @cached_property
    def predicted(self) -> Tensor:
        """The student's prediction at (x, t), with gradient."""
        return self.student(self.x, self.draw.t, self.cond, self.draw.omega)

    @property
    def consistent(self) -> Tensor:
        """The student's f_θ(x, t), with gradient."""
        return consistency_function(self.predicted, self.x, self.draw.t, self.schedule, self.prediction)

    def noised(self, t: Tensor) -> Tensor:
        """The latents at another timestep, with the same noise."""
        return noised(self.z, self.draw.noise, t, self.schedule)

    @torch.no_grad()
    def goal(self, x: Tensor, t: Tensor) -> Tensor:
        """The target's f_θ⁻(x, t)."""
        output = self.target(x, t, self.cond, self.draw.omega)
        return consistency_function(output, x, t, self.schedule, self.prediction)

    def ended(self, t_end: Tensor) -> Tensor:
        """The student's DDIM step from (x, t) to t_end, with gradient: its trajectory function F_θ."""
        return self._to(self.predicted, self.x, self.draw.t, t_end)

    @torch.no_grad()
    def goal_ended(self, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
        """The target's DDIM step from (x, t) to t_end; x itself where that is t."""
        step = self._to(self.target(x, t, self.cond, self.draw.omega), x, t, t_end)
        return torch.where((t == t_end).reshape(-1, *[1] * (x.ndim - 1)).to(x.device), x, step)

    def _to(self, output: Tensor, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
        x0 = predict_x0(output, x, t, self.schedule, self.prediction)
        return ddim_step(x0, predict_noise(output, x, t, self.schedule, self.prediction), t_end, self.schedule)

    @torch.no_grad()
    def taught(self, t_next: Tensor) -> Tensor:
        """x̂ = x_t + (1 + ω)·Ψ(x_t, c) − ω·Ψ(x_t, ∅), the guided teacher's way to t_next (LCM-LoRA, Algorithm 1).

        `solver` is x_t + Ψ, of one condition. The teacher sees cond and uncond in one batch, if they are as long.
        """

        def step(cond: Cond, times: int) -> Tensor:
            x, t, t_end = (torch.cat([v] * times) for v in (self.x, self.draw.t, t_next))
            return self.solver(lambda x, t: self.teacher(x, t, cond, None), x, t, t_end, self.schedule, self.prediction)

        return self._guided(step)

    @torch.no_grad()
    def taught_x0(self) -> Tensor:
        """The guided teacher's x̂₀ at (x, t)."""

        def predict(cond: Cond, times: int) -> Tensor:
            x, t = torch.cat([self.x] * times), torch.cat([self.draw.t] * times)
            return predict_x0(self.teacher(x, t, cond, None), x, t, self.schedule, self.prediction)

        return self._guided(predict)

    def _guided(self, predict: Callable[[Cond, int], Tensor]) -> Tensor:
        """predict(conditions, how often the batch is repeated for them), under guidance."""
        if not self.uncond:
            return predict(self.cond, 1)
        pairs = list(zip(self.cond, self.uncond, strict=True))
        if all(c.shape == u.shape for c, u in pairs):
            with_cond, without = predict(tuple(map(torch.cat, pairs)), 2).chunk(2)
        else:
            with_cond, without = predict(self.cond, 1), predict(self.uncond, 1)
        return guided(with_cond, without, 1 + self.draw.omega)


def already_consistent(
    teacher: Model, z: Tensor, cond: Cond, noise: Tensor, *, schedule: Schedule, prediction: Prediction
) -> bool:
    """Whether a teacher draws a sample in one step, as an LCM does, where a diffusion model gives the mean of many.

    From the last timestep a diffusion model's x̂₀ is the posterior mean: paler than the data z, and z = x̂₀ + something
    uncorrelated. An LCM's x̂₀ has the data's contrast and only partly agrees with z. A hint, for a warning.
    """
    t = schedule.level(torch.ones(len(z), dtype=torch.float64))
    x = noised(z, noise, t, schedule)
    with torch.no_grad():
        x0 = predict_x0(teacher(x, t, cond, None), x, t, schedule, prediction)
    x0, z = (v - v.mean((0, *range(2, v.ndim)), keepdim=True) for v in (x0, z))
    drawn, agreed, contrast = (x0 * x0).sum(), (x0 * z).sum(), (z * z).sum()
    return bool(0.85 * contrast < drawn < 1.4 * contrast and agreed < 0.8 * drawn)
