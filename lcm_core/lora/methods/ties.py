"""TIES (arXiv 2306.01708): trim, elect the sign, merge what agrees."""

from collections.abc import Sequence

from ..method import method
from ..options import Density, MajoritySign
from ..pruning import dense, elected_mean, keep_largest
from ..terms import Merge
from ..vector import LoRAVector


@method()
def ties(
    vectors: Sequence[LoRAVector],
    weights: Sequence[float],
    *,
    density: Density = 0.5,
    majority_sign_method: MajoritySign = "total",
) -> Merge:
    """As magnitude_prune; then each value is the mean of those that have the majority's sign (arXiv 2306.01708)."""
    return dense(weights, keep_largest(density), elected_mean(majority_sign_method))
