"""The settings of distillation and fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class DistillConfig:
    """Settings of `distill`, with the defaults of diffusers' LCM-LoRA scripts.

    objective: lcd distils a teacher (arXiv 2311.05556, Algorithm 1), lcf fine-tunes an LCM without one.
    solver: the teacher's step Ψ, `losses.ddim` or `losses.dpmpp_2s`, which evaluates it twice.
    links: steps that the teacher's trajectory is cut into (skipping k = 1000 // links); on_grid as in `draw_timesteps`.
    omega: the range of the guidance ω, drawn evenly, or one number twice; scale 1 + ω of classifier-free guidance.
    target_decay: None for the student itself without gradient (LoRA), else the decay of the average of its weights
        that is the target and, at the end, the result (full models: 0.95).
    warmup: steps of linear warm-up; decay_to: share of the learning rate that a half cosine ends at (1 is constant).
    optimizer: adamw8bit needs bitsandbytes. autocast: the dtype of the model's matrix products, None for its own.
    accumulate: parts that a batch is worked through in, which saves memory and leaves the result.
    """

    steps: int = 1000
    learning_rate: float = 1e-4
    objective: Literal["lcd", "lcf"] = "lcd"
    solver: Literal["ddim", "dpm++"] = "ddim"
    links: int = 50
    on_grid: bool = True
    omega: tuple[float, float] = (5.0, 15.0)
    target_decay: float | None = None
    distance: Literal["huber", "l2"] = "huber"
    huber_c: float = 0.001
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    warmup: int = 0
    decay_to: float = 1.0
    accumulate: int = 1
    autocast: Literal[None, "bfloat16", "float16"] = None
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.omega
        checks = {
            "steps": (self.steps >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate < 1, "in (0, 1)"),
            "omega": (0 <= low <= high < math.inf, "0 <= low <= high; the scripts use 5 to 15"),
            "target_decay": (self.target_decay is None or 0 <= self.target_decay < 1, "None or in [0, 1)"),
            "huber_c": (self.huber_c > 0, "above 0; the scripts use 0.001"),
            "weight_decay": (0 <= self.weight_decay < 1, "in [0, 1)"),
            "max_grad_norm": (self.max_grad_norm > 0, "above 0"),
            "warmup": (self.warmup >= 0, "at least 0"),
            "decay_to": (0 <= self.decay_to <= 1, "in [0, 1]"),
            "accumulate": (self.accumulate >= 1, "at least 1"),
            "save_every": (self.save_every >= 1, "at least 1"),
            "seed": (0 <= self.seed < 2**64, "in 0 … 2**64 - 1"),
        }
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is not Literal:
                continue
            allowed = get_args(kind)
            checks[name] = (getattr(self, name) in allowed, f"one of {', '.join(map(str, allowed))}")
        for name, (holds, rule) in checks.items():
            if not holds:
                raise ValueError(f"{name} {getattr(self, name)} must be {rule}")

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        fall = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * rise * (self.decay_to + (1 - self.decay_to) * fall)
