"""The Karcher (Riemannian) mean of several vectors on the sphere, as mergekit's `karcher`."""

import math
from collections.abc import Sequence

import numpy as np

from ..lowrank import Factors
from ..method import method
from ..terms import PARALLEL, Merge, Terms, module_products, scaled
from ..vector import LoRAVector

STEPS = 100
CONVERGED = 1e-12


@method()
def karcher(vectors: Sequence[LoRAVector], weights: Sequence[float]) -> Merge:
    """The mean on the sphere of any number of vectors, module by module, exact: slerp's midpoint for more than two.

    Of the directions u_i = ΔW_i/‖ΔW_i‖ with shares |w_i|/Σ|w_j| it is the point m of the unit sphere where the sum of
    the logarithms vanishes, Σ s_i θ_i/sin θ_i (u_i - cos θ_i m) = 0 with θ_i the angle of u_i and m (H. Karcher,
    Comm. Pure Appl. Math. 30, 1977), found by steps along it. The norm is Σ s_i ‖ΔW_i‖; a negative weight turns its
    vector round. m is a combination of the u_i, so all of it is done in their inner products. Where m comes to lie
    opposite one of them, or Σ s_i u_i vanishes, no mean is defined and Σ s_i ΔW_i is taken.

    Raises ValueError where all weights are 0.
    """
    whole = sum(map(abs, weights))
    if not whole:
        raise ValueError("all weights are 0; a mean needs one other than 0")
    shares = [weight / whole for weight in weights]

    def merge(name: str, terms: Terms) -> Sequence[Factors]:
        signed = np.array([shares[i] for i, _ in terms])
        found = _mean(module_products(name, terms), signed)
        combined = dict(zip((i for i, _ in terms), found, strict=True))
        return scaled(name, terms, [float(combined.get(i, 0.0)) for i in range(len(weights))])

    return merge


def _mean(products: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The coefficients of the ΔW_i in their mean, from their inner products and signed shares."""
    norms = np.sqrt(products.diagonal().clip(min=0))
    used = (norms > 0) & (shares != 0)
    if not used.any():
        return shares
    # In units of u_i, turned round where the share is negative.
    sizes = np.where(shares < 0, -1.0, 1.0)[used] * norms[used]
    cosines = products[np.ix_(used, used)] / np.outer(sizes, sizes)
    weight = np.abs(shares[used]) / np.abs(shares[used]).sum()
    mean = weight.copy()
    length = float(mean @ cosines @ mean)
    if length < 1 - PARALLEL:
        return shares
    mean /= math.sqrt(length)
    for _ in range(STEPS):
        dots = (cosines @ mean).clip(-1.0, 1.0)
        if dots.min() < -PARALLEL:
            return shares
        angles = np.arccos(dots)
        ratio = weight / np.sinc(angles / np.pi)
        tangent = ratio - float(ratio @ dots) * mean
        step = math.sqrt(max(float(tangent @ cosines @ tangent), 0.0))
        if step < CONVERGED:
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        mean /= math.sqrt(float(mean @ cosines @ mean))
    found = np.zeros(len(shares))
    found[used] = mean * float(np.abs(shares) @ norms) / sizes
    return found
