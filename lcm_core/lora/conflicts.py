"""How the terms of a weighted sum meet: which point the same way, and how much of them cancels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .terms import vector_products
from .vector import LoRAVector


@dataclass(frozen=True)
class Conflicts:
    """cosines: (i, j) -> cosine of w_i tau_i and w_j tau_j, 0 where one is zero.
    cancelled: 1 - ‖Σ wᵢ·τᵢ‖² / Σ ‖wᵢ·τᵢ‖², the share of the terms' energy that their sum lacks; negative where they
    strengthen each other (-1 for two equal ones), 0 for orthogonal ones.
    """

    cosines: dict[tuple[int, int], float]
    cancelled: float


def conflicts(vectors: Sequence[LoRAVector], weights: Sequence[float]) -> Conflicts:
    """The conflicts of sum_i w_i tau_i, from the factors. Raises ValueError where a module's shapes differ."""
    relative = np.array(weights) / (max(map(abs, weights), default=0.0) or 1.0)
    energies = vector_products(vectors) * np.outer(relative, relative)
    norms = np.sqrt(energies.diagonal().clip(min=0))
    whole = float(energies.diagonal().sum())
    cosines = {
        (i, j): float(np.clip(energies[i, j] / (norms[i] * norms[j]), -1, 1)) if norms[i] * norms[j] else 0.0
        for i in range(len(vectors))
        for j in range(i + 1, len(vectors))
    }
    return Conflicts(cosines, 1 - float(energies.sum()) / whole if whole else 0.0)
