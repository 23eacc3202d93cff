"""What is random in a training step: each kind has a stream of its own, which depends on (seed, step) alone."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ..noise import step_noise
from .config import DistillConfig
from .losses import Draw, draw_timesteps


def stream_seed(*of: int | str) -> int:
    """The seed, 0 … 2⁶⁴ − 1, of a stream by what it is of: SHA-256, so that no two streams run into each other."""
    return int.from_bytes(hashlib.sha256(repr(of).encode()).digest()[:8], "big")


def draw_step(config: DistillConfig, z: Tensor, train_steps: int, step: int) -> Draw:
    """Timesteps, ω and noise for the latents z (B, C, H, W) of a step, the same whatever else draws random numbers."""
    generator = torch.Generator().manual_seed(stream_seed(config.seed, step, "timesteps and omega"))
    t, t_next = draw_timesteps(
        len(z), links=config.links, train_steps=train_steps, on_grid=config.on_grid, generator=generator
    )
    low, high = config.omega
    omega = low + (high - low) * torch.rand(len(z), generator=generator, dtype=torch.float64)
    return Draw(t, t_next, omega, step_noise(z.shape, stream_seed(config.seed, "noise"), step).to(z))
