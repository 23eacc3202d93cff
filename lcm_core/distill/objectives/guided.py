"""Guided regression: stage one of guided distillation (arXiv 2210.03142), which a training may begin with."""

from __future__ import annotations

from torch import Tensor

from ..losses import Problem
from ..objective import objective


@objective(gamma=None)
def guided(problem: Problem) -> Tensor:
    """f_θ learns the guided teacher's x̂₀, with ω as an input where the model takes it (arXiv 2210.03142)."""
    goal = problem.taught_x0()  # section 3.1: x̂ʷ(z_t) = (1 + ω)·x̂(z_t, c) − ω·x̂(z_t, ∅)
    return problem.distance(problem.consistent, goal)
