"""The weighted sum (LCM-LoRA, arXiv 2311.05556, eq. 3)."""

from collections.abc import Sequence

from ..method import method
from ..terms import Merge, scaled
from ..vector import LoRAVector


@method()
def sum_(vectors: Sequence[LoRAVector], weights: Sequence[float]) -> Merge:
    """Σ wᵢ·τᵢ, exact. The rank is the sum of the ranks."""
    return lambda name, terms: scaled(name, terms, weights)
