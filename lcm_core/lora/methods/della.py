"""DELLA (arXiv 2406.11617): drop by magnitude, elect the sign, merge what agrees."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from ..method import Option, method
from ..options import Density, MajoritySign, Seed
from ..pruning import BAND, Sparsify, dense, elected_mean, random_mask
from ..terms import Merge
from ..vector import LoRAVector

Epsilon = Annotated[float, Option("how much more often a row's largest value stays than its smallest", 6, 0, 1)]


@method()
def della(
    vectors: Sequence[LoRAVector],
    weights: Sequence[float],
    *,
    density: Density = 0.5,
    epsilon: Epsilon = 0.2,
    majority_sign_method: MajoritySign = "total",
    seed: Seed = 0,
) -> Merge:
    """As dare_ties, but in each row of ΔW larger values stay more often, by up to epsilon (DELLA, arXiv 2406.11617).

    MAGPRUNE: of n values the one of rank r by magnitude, 0 the largest, is dropped with chance
    p = 1 - density - ε/2 + ε r/(n - 1) and else divided by 1 - p. Ranks are within a row, an output of the module.

    Raises ValueError where a chance would be outside of [0, 1].
    """
    low, high = density - epsilon / 2, density + epsilon / 2
    if low <= 0 or high > 1:
        raise ValueError(
            f"density {density} and epsilon {epsilon} make chances of {low:g} to {high:g}, and they are in (0, 1]; "
            "lower epsilon"
        )
    return dense(weights, _keep_by_rank(density, epsilon, seed), elected_mean(majority_sign_method))


def _keep_by_rank(density: float, epsilon: float, seed: int) -> Sparsify:
    def sparsify(name: str, index: int, matrix: Tensor) -> Tensor:
        values = matrix.cpu()
        rows = max(1, BAND // values.shape[1])
        rank = torch.cat([_ranks(band) for band in values.split(rows)])
        chance = rank.div_(max(values.shape[1] - 1, 1)).sub_(0.5 * (values.shape[1] > 1)).mul_(epsilon).add_(density)
        mask = random_mask(name, index, tuple(values.shape), chance, seed)
        return (values * mask).div_(chance).to(matrix.device)

    return sparsify


def _ranks(matrix: Tensor) -> Tensor:
    """Each value's place in its row by magnitude, 0 the smallest; equal ones in order. float32 is sorted as whole
    numbers, the magnitude's bits before the column's."""
    columns = torch.arange(matrix.shape[1])
    if matrix.dtype == torch.float32:
        order = matrix.abs().view(torch.int32).to(torch.int64).bitwise_left_shift_(32).bitwise_or_(columns)
        order.numpy().sort(axis=1)
        order &= 2**32 - 1
    else:
        order = matrix.abs().argsort(dim=1, stable=True)
    return torch.empty_like(matrix).scatter_(1, order, columns.to(matrix.dtype).expand_as(matrix))
