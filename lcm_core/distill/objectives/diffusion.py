"""The diffusion loss at early timesteps (iLCT, arXiv 2502.01441), to be added to another objective."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from ...option import Option
from ..distances import mean_square
from ..losses import Problem
from ..objective import objective

Below = Annotated[float, Option("the share of the timesteps, from the cleanest, that it is taken at", 6, minimum=0,
                                maximum=1, above=True)]  # fmt: skip


@objective(teacher=False, gamma=None)
def diffusion(problem: Problem, *, below: Below = 0.25) -> Tensor:
    """‖f_θ(x_t) − z‖² at the cleanest timesteps, where the data itself is the target (arXiv 2502.01441)."""
    early = problem.schedule.share(problem.draw.t) <= below
    apart = mean_square(problem.consistent, problem.z)  # section 3: the loss at t below the threshold
    return (apart * early.to(apart)).mean()
