"""DARE (arXiv 2311.03099) with the weighted sum."""

from collections.abc import Sequence

from ..method import method
from ..options import Density, Seed
from ..pruning import dense, keep_randomly, weighted_sum
from ..terms import Merge
from ..vector import LoRAVector


@method()
def dare_linear(
    vectors: Sequence[LoRAVector], weights: Sequence[float], *, density: Density = 0.5, seed: Seed = 0
) -> Merge:
    """Each value of ΔW stays by chance (density) and grows by 1/density; then Σ wᵢ·τᵢ (arXiv 2311.03099).

    The draw depends on the seed, the vector's place and the module's name alone.
    """
    return dense(weights, keep_randomly(density, seed), weighted_sum)
