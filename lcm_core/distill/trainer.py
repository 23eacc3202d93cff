"""Distillation of an LCM-LoRA: one copy of the weights, an adapter that is switched off for the teacher."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ..consistency import Prediction
from ..schedule import NoiseSchedule
from .adapters import LoRAAdapter
from .losses import Model, draw_timesteps, huber, lcd_loss

Batch = tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]


@dataclass(frozen=True)
class DistillConfig:
    """Settings of `distill`, with the defaults of diffusers' LCM-LoRA scripts.

    links: DDIM steps that the teacher's trajectory is cut into (k = 1000 // links); on_grid as in `draw_timesteps`.
    omega: the range of the guidance ω, drawn evenly; scale 1 + ω of classifier-free guidance.
    target_decay: None for the student itself without gradient, else the decay of an average of its factors.
    warmup: steps of linear warm-up; decay_to: share of the learning rate that a half cosine ends at (1 is constant).
    """

    steps: int = 1000
    learning_rate: float = 1e-4
    links: int = 50
    on_grid: bool = True
    omega: tuple[float, float] = (5.0, 15.0)
    target_decay: float | None = None
    huber_c: float = 0.001
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    warmup: int = 0
    decay_to: float = 1.0
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            "steps": (self.steps >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate < 1, "in (0, 1)"),
            "omega": (math.isfinite(sum(self.omega)) and 0 <= self.omega[0] <= self.omega[1], "0 <= low <= high"),
            "target_decay": (self.target_decay is None or 0 <= self.target_decay < 1, "None or in [0, 1)"),
            "decay_to": (0 <= self.decay_to <= 1, "in [0, 1]"),
        }
        for name, (holds, allowed) in checks.items():
            if not holds:
                raise ValueError(f"{name} {getattr(self, name)} must be {allowed}")

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        fall = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * rise * (self.decay_to + (1 - self.decay_to) * fall)


@dataclass(frozen=True)
class Progress:
    """After a step: how many are done, of how many, and the step's loss."""

    step: int
    steps: int
    loss: float


def distill(
    model: Model,
    adapter: LoRAAdapter,
    batches: Iterable[Batch],
    config: DistillConfig,
    *,
    schedule: NoiseSchedule,
    prediction: Prediction = "epsilon",
    state: Path | None = None,
) -> Iterator[Progress]:
    """Train `adapter` on `model` by LCD (Algorithm 1 of arXiv 2311.05556); a Progress after every step.

    model(x, t, cond) is the network with the adapter on it. `batches` yields (z, cond, uncond), see `lcd_loss`, and
    may be endless; it is advanced past the steps already done. With `state`, a file, everything needed to go on is
    saved every `save_every` steps and at the end, and a later call resumes from it. Where torch.distributed is
    initialised, gradients are averaged over the processes.
    """
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    parameters: list[Tensor] = list(adapter.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=(0.9, 0.999), weight_decay=config.weight_decay, foreach=True
    )
    done = 0
    if state is not None and state.exists():
        saved = torch.load(state, weights_only=True)
        adapter.load_state_dict(saved["adapter"])
        optimizer.load_state_dict(saved["optimizer"])
        average, done = saved["average"], saved["done"]

    def teacher(x: Tensor, t: Tensor, cond: tuple[Tensor, ...]) -> Tensor:
        with adapter.using(None):
            return model(x, t, cond)

    def target(x: Tensor, t: Tensor, cond: tuple[Tensor, ...]) -> Tensor:
        with adapter.using(parameters if config.target_decay is None else average):
            return model(x, t, cond)

    for step, (z, cond, uncond) in zip(range(config.steps), batches, strict=False):
        if step < done:
            continue
        generator = torch.Generator().manual_seed((config.seed * 1_000_003 + step) * 1024 + rank)
        t, t_next = draw_timesteps(
            len(z), links=config.links, train_steps=schedule.steps, on_grid=config.on_grid, generator=generator
        )
        low, high = config.omega
        omega = low + (high - low) * torch.rand(len(z), generator=generator, dtype=torch.float64)
        noise = torch.randn(z.shape, generator=generator).to(z)
        loss = lcd_loss(
            model, teacher, target, z, cond, uncond, t=t, t_next=t_next, omega=omega, noise=noise, schedule=schedule,
            prediction=prediction, distance=lambda a, b: huber(a, b, config.huber_c),
        )  # fmt: skip
        if not torch.isfinite(loss):
            remedy = f"lower learning_rate {config.learning_rate:g}"
            raise ValueError(f"the loss is {loss.item()} at step {step + 1}; {remedy}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if processes > 1:
            average_gradients(parameters, processes)
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step)
        optimizer.step()
        if config.target_decay is not None:
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, 1 - config.target_decay)
        if state is not None and rank == 0 and ((step + 1) % config.save_every == 0 or step + 1 == config.steps):
            part = state.with_suffix(".part")
            saved = {"adapter": adapter.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            torch.save({**saved, "done": step + 1}, part)
            os.replace(part, state)
        yield Progress(step + 1, config.steps, loss.item())


def average_gradients(parameters: list[Tensor], processes: int) -> None:
    """Replace every gradient by its mean over the processes of torch.distributed, in one exchange."""
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    for p, part in zip(parameters, (flat / processes).split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)
