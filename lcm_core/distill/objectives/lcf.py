"""Latent consistency fine-tuning (arXiv 2310.04378, Algorithm 4)."""

from __future__ import annotations

from torch import Tensor

from ...consistency import Prediction
from ...schedule import Schedule
from ...solvers import ddim
from ..distances import huber
from ..losses import Cond, Distance, Draw, Model, Problem
from ..objective import objective


@objective(teacher=False, gamma=None)
def lcf(problem: Problem) -> Tensor:
    """f_θ agrees with itself at two points that the data and one noise make, without a teacher (arXiv 2310.04378)."""
    t_next = problem.draw.t_next
    goal = problem.goal(problem.noised(t_next), t_next)  # Algorithm 4: f_θ⁻(z_{t_n}, c, t_n)
    return problem.distance(problem.consistent, goal)


def lcf_loss(
    student: Model,
    target: Model,
    z: Tensor,
    cond: Cond,
    draw: Draw,
    *,
    schedule: Schedule,
    prediction: Prediction = "epsilon",
    distance: Distance = huber,
) -> Tensor:
    """Latent consistency fine-tuning (arXiv 2310.04378, Algorithm 4): no teacher, one noise makes both points."""
    return lcf.loss(Problem(student, target, target, z, cond, (), draw, schedule, prediction, ddim, distance))
