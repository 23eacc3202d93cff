"""The weighted sum of the largest values."""

from collections.abc import Sequence

from ..method import method
from ..options import Density
from ..pruning import dense, keep_largest, weighted_sum
from ..terms import Merge
from ..vector import LoRAVector


@method()
def magnitude_prune(vectors: Sequence[LoRAVector], weights: Sequence[float], *, density: Density = 0.5) -> Merge:
    """Only the largest values of each ΔW stay (density of them); then Σ wᵢ·τᵢ."""
    return dense(weights, keep_largest(density), weighted_sum)
