"""A batch of a training: whether it is one, its parts, and its loss."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from ..consistency import Prediction
from ..schedule import Schedule
from ..solvers import SOLVERS
from .config import DistillConfig
from .identity import Identified
from .losses import Batch, Cond, Draw, Model, Problem, already_consistent, distance_of
from .objectives import OBJECTIVES

log = logging.getLogger(__name__)


class Trainable(Identified, Protocol):
    """What `distill` trains: a LoRAAdapter or FullWeights."""

    names: tuple[str, ...]
    target: list[Tensor] | None
    average: list[Tensor] | None

    def frozen(self) -> dict[str, Tensor]: ...
    def parameters(self) -> Iterable[nn.Parameter]: ...
    def using(self, parameters: Sequence[Tensor] | None) -> AbstractContextManager[None]: ...


class BatchLoss:
    """The loss of a batch, with the student, the teacher and the target that the config asks for in one model."""

    def __init__(
        self, model: Model, weights: Trainable, config: DistillConfig, schedule: Schedule, prediction: Prediction
    ):
        self.model, self.weights, self.config = model, weights, config
        self.schedule, self.prediction = schedule, prediction
        self.distance = distance_of(config.distance, config.huber_c)

    def __call__(self, step: int, z: Tensor, cond: Cond, uncond: Cond, draw: Draw) -> Tensor:
        config = self.config
        problem = Problem(
            self.student, self.teacher, self.target, z, cond, uncond, draw, self.schedule, self.prediction,
            SOLVERS[config.solver], self.distance, config.links,
        )  # fmt: skip
        if step < config.warm_start:
            return OBJECTIVES["guided"].loss(problem)
        first, *more = (
            weight * OBJECTIVES[name].loss(problem, **{key: config.resolved[key] for key in OBJECTIVES[name].options})
            for name, weight in {config.objective: 1.0, **config.terms}.items()
        )
        return sum(more, first)

    def student(self, x: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Tensor:
        dtype = getattr(torch, self.config.autocast or "float32")
        with torch.autocast(x.device.type, dtype, enabled=self.config.autocast is not None):
            t = t.to(x.device, x.dtype if t.is_floating_point() else t.dtype)
            output = self.model(x, t, cond, None if omega is None else omega.to(x.device))
        return output.to(x.dtype)

    def teacher(self, x: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Tensor:
        with self.weights.using(None):
            return self.student(x, t, cond, omega)

    def target(self, x: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Tensor:
        if self.weights.target is None:
            return self.student(x, t, cond, omega)
        with self.weights.using(self.weights.target):
            return self.student(x, t, cond, omega)

    def warn(self, z: Tensor, cond: Cond, draw: Draw) -> None:
        """Log a warning if the teacher seems to be an LCM."""
        if self.config.needs_teacher and already_consistent(
            self.teacher, z, cond, draw.noise, schedule=self.schedule, prediction=self.prediction
        ):
            log.warning("the teacher draws a picture in one step: it seems to be an LCM, or to have an LCM-LoRA on it")


def checked(batch: Batch, config: DistillConfig, processes: int) -> Batch:
    """The batch in float32 or wider, without uncond where nothing needs it.

    ValueError if it is empty, uneven or can't be shared, and without uncond where ω is not 0.
    """
    z, cond, uncond = batch
    if len(z) == 0:
        raise ValueError("the batch has no latents; give at least one for each process")
    if not config.needs_teacher:
        uncond = ()
    for c in (*cond, *uncond):
        if len(c) != len(z):
            raise ValueError(f"{len(z)} latents, but conditioning for {len(c)}; give one to each latent")
    shapes = [[tuple(c.shape[1:]) for c in each] for each in (cond, uncond)]
    axes = [[len(shape) for shape in each] for each in shapes]
    if config.needs_teacher and not uncond and config.omega != (0, 0):
        raise ValueError(
            f"omega {config.omega} guides the teacher, and there is no conditioning without prompt; give it in uncond, "
            "or set omega to (0, 0) for a teacher that needs no guidance"
        )
    if uncond and axes[0] != axes[1]:
        raise ValueError(f"conditioning of shapes {shapes[0]}, but {shapes[1]} without prompt; give both alike")
    if len(z) % processes or len(z) // processes < config.accumulate:
        raise ValueError(
            f"a batch of {len(z)} can't be shared by {processes} processes and worked through in {config.accumulate} "
            f"parts; use a multiple of {processes}, at least {processes * config.accumulate}"
        )
    return z.to(torch.promote_types(z.dtype, torch.float32)), cond, uncond


def cut(cond: Cond, rows: slice) -> Cond:
    return tuple(c[rows] for c in cond)
