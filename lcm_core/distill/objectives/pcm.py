"""Phased consistency models (arXiv 2405.18407): the trajectory is cut into phases, each with an end of its own."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ...option import Option
from ..losses import Problem
from ..objective import objective

Phases = Annotated[int, Option("the number of phases, the steps that sampling takes", 1, minimum=1, maximum=64)]


@objective(gamma=0.0)
def pcm(problem: Problem, *, phases: Phases = 4) -> Tensor:
    """One solver step to the phase's edge agrees from both ends of a link, in each of the phases (arXiv 2405.18407)."""
    edge = phase_edge(problem, phases)
    t_next = torch.maximum(problem.draw.t_next, edge)
    # Algorithm 1: F_θ⁻(x̂, t_n → s_m), which is x̂ where the link ends at the edge s_m
    goal = problem.goal_ended(problem.taught(t_next), t_next, edge)
    return problem.distance(problem.ended(edge), goal)


def phase_edge(problem: Problem, phases: int) -> Tensor:
    """s_m, the greatest edge below each t (B,): the edges are the ⌊m·links/phases⌋-th points of the grid of links."""
    points = torch.arange(phases, dtype=torch.float64) * problem.links / phases
    edges = problem.schedule.level((points + 1e-9).floor() / problem.links)
    below = edges[None] < problem.draw.t[:, None]
    return edges[below.sum(1).sub(1).clamp(min=0)]
