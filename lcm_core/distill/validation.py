"""What a training is judged by while it runs: the same latents, conditions, draws and noise each time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..consistency import Prediction, consistency_function, multistep_sample
from ..noise import step_noise
from ..schedule import FlowSchedule, Schedule, lcm_sigmas, lcm_timesteps
from .batch_loss import BatchLoss, Trainable, checked
from .config import DistillConfig
from .data import sample_latents
from .losses import Batch, Model
from .objectives import OBJECTIVES
from .randomness import draw_step

SEED = 0  # of draws and noise, whatever the training's: trainings with other seeds and objectives compare
TEACHER_STEPS = 25


@dataclass(frozen=True)
class Score:
    """loss: the objective's on latents that are not trained on. distance: the root mean square of what one step from
    noise is off the guided teacher's picture of that noise; None where the objective has no teacher."""

    loss: float
    distance: float | None


class Validation:
    """A training judged on a batch (z, cond, uncond) as `distill` takes them, with what is its result at the moment.

    `score()` evaluates `draws` times as many timesteps as there are latents, as the last step of the training would.
    `pictures()` are latents that `steps` steps make of noise, with the objective's γ; `taught` those that the teacher
    makes of the same noise in 25 steps of DDIM, at the middle of the range of ω, which the pictures have too.
    The model's own random numbers, such as dropout's, are the caller's to turn off.
    """

    def __init__(
        self,
        model: Model,
        weights: Trainable,
        batch: Batch,
        config: DistillConfig,
        *,
        schedule: Schedule,
        prediction: Prediction = "epsilon",
        steps: int = 4,
        draws: int = 4,
    ):
        self.config = replace(config, seed=SEED, warm_start=0)
        self.last = config.steps - config.warm_start - 1
        self.weights, self.schedule, self.prediction, self.draws = weights, schedule, prediction, draws
        self.z, self.cond, self.uncond = checked(batch, replace(config, accumulate=1), 1)
        self.loss_of = BatchLoss(model, weights, self.config, schedule, prediction)
        self.omega = torch.full((len(self.z),), sum(config.omega) / 2, dtype=torch.float64)
        steps = min(steps, config.links)
        if isinstance(schedule, FlowSchedule):
            self.levels: list[float] | list[int] = lcm_sigmas(steps, schedule.flow, original_steps=config.links)
        else:
            self.levels = lcm_timesteps(steps, original_steps=config.links, train_steps=schedule.steps)

    @torch.no_grad()
    def score(self) -> Score:
        losses = []
        with self.weights.using(self.weights.average or list(self.weights.parameters())):
            for i in range(self.draws):
                draw = replace(draw_step(self.config, self.z, self.schedule, i), step=max(0, self.last))
                losses.append(self.loss_of(0, self.z, self.cond, self.uncond, draw))
            loss = float(torch.stack(losses).mean())
            if not self.config.needs_teacher:
                return Score(loss, None)
            return Score(
                loss, float((self.consistent(self.noise(0), self.levels[0]) - self.taught).square().mean().sqrt())
            )

    @torch.no_grad()
    def pictures(self) -> Tensor:
        """Latents like the batch's."""
        gamma = OBJECTIVES[self.config.objective].gamma
        with self.weights.using(self.weights.average or list(self.weights.parameters())):
            return multistep_sample(
                self.consistent, self.noise(0), self.levels, self.schedule.process,
                noise=lambda i: self.noise(i + 1), gamma=1.0 if gamma is None else gamma,
            )  # fmt: skip

    @cached_property
    def taught(self) -> Tensor:
        """Latents like the batch's."""
        return sample_latents(
            self.loss_of.teacher, self.cond, self.uncond, tuple(self.z.shape[1:]), schedule=self.schedule,
            prediction=self.prediction, scale=1 + float(self.omega[0]), steps=TEACHER_STEPS, seed=SEED,
        )  # fmt: skip

    def noise(self, i: int) -> Tensor:
        return step_noise(self.z.shape, SEED, i).to(self.z)

    def consistent(self, x: Tensor, level: float) -> Tensor:
        """f_θ(x, level), (B, …)."""
        t = torch.full((len(x),), level, dtype=torch.float64 if isinstance(level, float) else torch.int64)
        output = self.loss_of.student(x, t, self.cond, self.omega)
        return consistency_function(output, x, t, self.schedule, self.prediction)
