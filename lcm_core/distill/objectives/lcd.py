"""Latent consistency distillation (LCM-LoRA, arXiv 2311.05556, Algorithm 1)."""

from __future__ import annotations

from torch import Tensor

from ...consistency import Prediction
from ...schedule import Schedule
from ...solvers import Solver, ddim
from ..distances import huber
from ..losses import Cond, Distance, Draw, Model, Problem
from ..objective import objective


@objective()
def lcd(problem: Problem) -> Tensor:
    """f_θ agrees with itself at both ends of a link of the guided teacher's trajectory (arXiv 2311.05556)."""
    t_next = problem.draw.t_next
    goal = problem.goal(problem.taught(t_next), t_next)  # Algorithm 1: f_θ⁻(x̂, ω, c, t_n)
    return problem.distance(problem.consistent, goal)


def lcd_loss(
    student: Model,
    teacher: Model,
    target: Model,
    z: Tensor,
    cond: Cond,
    uncond: Cond,
    draw: Draw,
    *,
    schedule: Schedule,
    prediction: Prediction = "epsilon",
    solver: Solver = ddim,
    distance: Distance = huber,
) -> Tensor:
    """Latent consistency distillation, Algorithm 1 of LCM-LoRA (arXiv 2311.05556): a scalar.

    x_t = α(t)·z + σ(t)·ε; x̂ = x_t + (1 + ω)·Ψ(x_t, c) − ω·Ψ(x_t, ∅) is the guided teacher's way to t_next;
    L = d(f_θ(x_t, ω, c, t), f_θ⁻(x̂, ω, c, t_next)). `solver` is x_t + Ψ, of one condition. The teacher sees cond and
    uncond in one batch; without uncond, (), it is not guided. Teacher and target get no gradient.
    """
    return lcd.loss(Problem(student, teacher, target, z, cond, uncond, draw, schedule, prediction, solver, distance))
