"""Trajectory consistency distillation (arXiv 2402.19159): f_θ leads to any point of a trajectory."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ...option import Option
from ..losses import Problem
from ..objective import objective

LeastGamma = Annotated[float, Option("the least γ of the sampling to learn", 2, minimum=0, maximum=1)]


@objective(gamma=0.3)
def tcd(problem: Problem, *, least_gamma: LeastGamma = 0.0) -> Tensor:
    """A solver step to a random s = (1 − γ)·t_next agrees from both ends of a link (arXiv 2402.19159)."""
    draw, schedule = problem.draw, problem.schedule
    even = torch.zeros(len(draw.t), dtype=torch.float64) if draw.uniform is None else draw.uniform
    gamma = 1 - (1 - least_gamma) * even  # from the paper's s ∈ [0, t_n] for 0 to s = 0, LCM's end, for 1
    s = torch.minimum(schedule.level((1 - gamma) * schedule.share(draw.t_next)), draw.t_next)
    goal = problem.goal_ended(problem.taught(draw.t_next), draw.t_next, s)  # section 4.1: f_θ⁻^{→s}(x̂, t_n)
    return problem.distance(problem.ended(s), goal)
