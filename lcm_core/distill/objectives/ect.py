"""Easy consistency tuning (arXiv 2406.14548): from a diffusion model's Δt = t to a consistency model's small Δt."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ...option import Option
from ..losses import Problem
from ..objective import objective

StageSteps = Annotated[int, Option("after how many steps the link from t to r is shortened again", 3, minimum=1)]
Shrink = Annotated[float, Option("how many times shorter each stage's links are", 4, minimum=1, above=True)]
OnData = Annotated[
    bool, Option("whether the next point is the data's own, as in the paper, in place of the teacher's", 5)
]
K, B = 8.0, 1.0  # of n(t), the paper's


@objective()
def ect(problem: Problem, *, stage_steps: StageSteps = 250, shrink: Shrink = 2.0, on_data: OnData = False) -> Tensor:
    """LCD whose links begin as long as t, so with the guided teacher's x̂₀ as target, and shorten (arXiv 2406.14548)."""
    t_next = shortened_link(problem, problem.draw.step // stage_steps + 1, shrink)
    point = problem.noised(t_next) if on_data else problem.taught(t_next)
    return problem.distance(problem.consistent, problem.goal(point, t_next))


def shortened_link(problem: Problem, stage: int, shrink: float) -> Tensor:
    """r = t·max(1 − n(t)/q^a, 0) of stage a, with n(t) = 1 + k/(1 + e^{bt}) (section 3.2, the mapping function).

    t and r are times, σ/α of a diffusion and σ of a flow. The result are timesteps (B,).
    """
    time = problem.schedule.time(problem.draw.t)
    ratio = 1 - (1 + K * torch.sigmoid(-B * time)) / shrink**stage
    return problem.schedule.at(torch.where(ratio > 0, time * ratio, 0.0))
