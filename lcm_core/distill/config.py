"""The settings of distillation and fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..solvers import SOLVERS
from ..text import listed
from .distances import DISTANCES
from .objectives import OBJECTIVES
from .optimizers import OPTIMIZERS


@dataclass(frozen=True)
class DistillConfig:
    """Settings of `distill`.

    Learning rate, links, omega, huber_c and max_grad_norm are by default those of diffusers'
    train_lcm_distill_lora_sd_wds.py; its distance is l2 and its weight decay 0.01.

    objective: one of `objectives.OBJECTIVES`: lcd distils a teacher (arXiv 2311.05556, Algorithm 1), lcf fine-tunes an
        LCM without one, and others. terms: further objectives that are added to it, by name with their weights.
    warm_start: so many of the first steps have the objective `guided` alone.
    options: of these objectives, by name; the rest have their defaults.
    solver: the teacher's step Ψ, one of `solvers.SOLVERS`; dpm++ and heun (of a flow) evaluate it twice.
    links: steps that the teacher's trajectory is cut into (skipping k = 1000 // links); on_grid as in `draw_timesteps`.
    omega: the range of the guidance ω, drawn evenly, or one number twice; scale 1 + ω of classifier-free guidance.
    distance: one of `distances.DISTANCES`; huber_c: its scale c (l2 has none).
    target_decay: None for the student itself without gradient (LoRA), else the decay of the average of its weights
        that is the target and, without ema_decay, the result (full models: 0.95).
    ema_decay: None, or the decay of the average of the weights that is the result; after n steps it is at most
        (1 + n)/(10 + n), so that the weights of the start are soon forgotten.
    warmup: steps of linear warm-up; decay_to: share of the learning rate that a half cosine ends at (1 is constant).
    optimizer: one of `optimizers.OPTIMIZERS`, some of which need their packages.
    autocast: the dtype of the model's matrix products, None for its own.
    accumulate: parts that a batch is worked through in, which saves memory and leaves the result.
    """

    steps: int = 1000
    learning_rate: float = 1e-4
    objective: str = "lcd"
    terms: Mapping[str, float] = field(default_factory=dict, hash=False)
    warm_start: int = 0
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    solver: str = "ddim"
    links: int = 50
    on_grid: bool = True
    omega: tuple[float, float] = (5.0, 15.0)
    target_decay: float | None = None
    ema_decay: float | None = None
    distance: str = "huber"
    huber_c: float = 0.001
    optimizer: str = "adamw"
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
            "objective": (self.objective in OBJECTIVES, f"one of {', '.join(OBJECTIVES)}"),
            "terms": (
                all(name in OBJECTIVES and 0 < weight < math.inf for name, weight in self.terms.items()),
                f"weights above 0 of {', '.join(OBJECTIVES)}",
            ),
            "warm_start": (0 <= self.warm_start <= self.steps, f"0 … {self.steps}, the steps"),
            "solver": (self.solver in SOLVERS, f"one of {', '.join(SOLVERS)}"),
            "distance": (self.distance in DISTANCES, f"one of {', '.join(DISTANCES)}"),
            "optimizer": (self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
            "learning_rate": (0 < self.learning_rate <= 1, "in (0, 1]"),
            "omega": (0 <= low <= high < math.inf, "0 <= low <= high; the scripts use 5 to 15"),
            "target_decay": (self.target_decay is None or 0 <= self.target_decay < 1, "None or in [0, 1)"),
            "ema_decay": (self.ema_decay is None or 0 <= self.ema_decay < 1, "None or in [0, 1)"),
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
        self.resolved  # noqa: B018

    @property
    def used(self) -> list[str]:
        """The names of the objectives of the training."""
        return list(dict.fromkeys([*(["guided"] if self.warm_start else []), self.objective, *self.terms]))

    @property
    def needs_teacher(self) -> bool:
        """Whether an objective asks the guided teacher."""
        return any(OBJECTIVES[name].teacher for name in self.used)

    @property
    def resolved(self) -> dict[str, Any]:
        """Every option of the objectives used, the defaults of those that are not given included.

        ValueError for an option that none of them has, and a value that is not allowed.
        """
        whole: dict[str, Any] = {}
        for name in self.used:
            known = OBJECTIVES[name].options
            whole |= OBJECTIVES[name].resolved({key: value for key, value in self.options.items() if key in known})
        if unknown := [key for key in self.options if key not in whole]:
            raise ValueError(
                f"{' and '.join(self.used)} have no option {listed(unknown)}; the options: {', '.join(whole) or 'none'}"
            )
        return whole

    def ema(self, step: int) -> float | None:
        """The share of the result's average that stays in a step."""
        return None if self.ema_decay is None else min(self.ema_decay, (1 + step) / (10 + step))

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        fall = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * rise * (self.decay_to + (1 - self.decay_to) * fall)
