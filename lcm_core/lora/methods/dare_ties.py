"""DARE's pruning (arXiv 2311.03099) with TIES's election and mean (arXiv 2306.01708)."""

from collections.abc import Sequence

from ..method import method
from ..options import Density, MajoritySign, Seed
from ..pruning import dense, elected_mean, keep_randomly
from ..terms import Merge
from ..vector import LoRAVector


@method()
def dare_ties(
    vectors: Sequence[LoRAVector],
    weights: Sequence[float],
    *,
    density: Density = 0.5,
    majority_sign_method: MajoritySign = "total",
    seed: Seed = 0,
) -> Merge:
    """As dare_linear, but each value is the mean of those that have the majority's sign, as in ties."""
    return dense(weights, keep_randomly(density, seed), elected_mean(majority_sign_method))
