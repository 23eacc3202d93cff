"""The weighted sum at the strength of its strongest term, which LoRA mergers call auto strength."""

import math
from collections.abc import Sequence

import numpy as np

from ..gram import ROUNDING
from ..lowrank import Factors
from ..method import method
from ..options import PerModule
from ..terms import Merge, Terms, module_products, scaled, vector_products
from ..vector import LoRAVector


@method()
def auto_strength(vectors: Sequence[LoRAVector], weights: Sequence[float], *, per_module: PerModule = False) -> Merge:
    """s·Σ wᵢ·τᵢ, s such that its norm is the largest ‖wᵢ·τᵢ‖, exact. For several strong LoRAs that burn the picture.

    ‖Σ wᵢ·τᵢ‖² = Σᵢⱼ wᵢ wⱼ ⟨τᵢ, τⱼ⟩ is computed from the factors. Where the terms cancel each other within rounding s is
    1. Two equal terms get s = 1/2, orthogonal ones of one norm 1/√2; terms that partly cancel each other grow.
    """
    whole = None if per_module else _scale(vector_products(vectors), weights)

    def merge(name: str, terms: Terms) -> Sequence[Factors]:
        scale = _scale(module_products(name, terms), [weights[i] for i, _ in terms]) if whole is None else whole
        return scaled(name, terms, [scale * weight for weight in weights])

    return merge


def _scale(products: np.ndarray, weights: Sequence[float]) -> float:
    relative = np.array(weights) / (max(map(abs, weights)) or 1.0)
    energies = products * np.outer(relative, relative)
    strongest, total = float(energies.diagonal().max()), float(energies.sum())
    return math.sqrt(strongest / total) if total > ROUNDING * strongest else 1.0
