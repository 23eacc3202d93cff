"""The optimizers by name."""

from __future__ import annotations

import torch
from torch import nn

from .config import DistillConfig


def make_optimizer(config: DistillConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with betas .9 and .999; adamw8bit keeps its state in 8 bits, and is an ImportError without bitsandbytes."""
    rate, betas, decay = config.learning_rate, (0.9, 0.999), config.weight_decay
    if config.optimizer == "adamw":
        fused = parameters[0].device.type in ("cpu", "cuda")
        return torch.optim.AdamW(parameters, lr=rate, betas=betas, weight_decay=decay, fused=fused)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ImportError("optimizer adamw8bit needs bitsandbytes (pip install bitsandbytes); or use adamw") from error
    return AdamW8bit(parameters, lr=rate, betas=betas, weight_decay=decay)
