"""What is random in a training step: each kind has a stream of its own, which depends on (seed, step) alone."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ..noise import step_noise
from ..schedule import FlowSchedule, Schedule
from .config import DistillConfig
from .losses import Draw, draw_sigmas, draw_timesteps


def stream_seed(*of: int | str) -> int:
    """The seed, 0 … 2⁶⁴ − 1, of a stream by what it is of: SHA-256, so that no two streams run into each other."""
    return int.from_bytes(hashlib.sha256(repr(of).encode()).digest()[:8], "big")


def draw_step(config: DistillConfig, z: Tensor, schedule: Schedule, step: int) -> Draw:
    """Timesteps, ω and noise for the latents z (B, …) of a step, the same whatever else draws random numbers.

    All is drawn on the CPU, so it is the same on every device; the noise is put beside z.
    """
    generator = torch.Generator().manual_seed(stream_seed(config.seed, step, "timesteps and omega"))
    count, links, on_grid = len(z), config.links, config.on_grid
    if isinstance(schedule, FlowSchedule):
        t, t_next = draw_sigmas(count, schedule, links=links, on_grid=on_grid, generator=generator)
    else:
        t, t_next = draw_timesteps(count, links=links, train_steps=schedule.steps, on_grid=on_grid, generator=generator)
    low, high = config.omega
    omega, uniform = (torch.rand(count, generator=generator, dtype=torch.float64) for _ in range(2))
    noise = step_noise(z.shape, stream_seed(config.seed, "noise"), step).to(z)
    of_objective = step if step < config.warm_start else step - config.warm_start
    return Draw(t, t_next, low + (high - low) * omega, noise, uniform, of_objective)
