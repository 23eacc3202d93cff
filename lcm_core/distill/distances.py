"""The distances d(f_θ, target) of the objectives, by name: each takes two batches (B, …) and a scale c, and is a mean.

Near 0 all are squares. Beyond c, huber grows as the absolute value of each number, huber_norm as the norm of each
sample, whose gradient so has one length whatever the sample is off by, and cauchy as its logarithm, so that samples far
off count less and less.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def huber(a: Tensor, b: Tensor, c: float = 0.001) -> Tensor:
    """Pseudo-Huber distance √((a − b)² + c²) − c of each number, averaged: that of diffusers' LCM scripts."""
    return (((a - b) ** 2 + c**2).sqrt() - c).mean()


def huber_norm(a: Tensor, b: Tensor, c: float = 0.00054) -> Tensor:
    """√(‖a − b‖² + c²·n) − c·√n of each sample of n numbers, over √n, averaged: iCT's (arXiv 2310.14189, Table 1).

    The paper's c = 0.00054·√n is c = 0.00054 here, and its distance is √n times this one.
    """
    return ((mean_square(a, b) + c**2).sqrt() - c).mean()


def cauchy(a: Tensor, b: Tensor, c: float = 0.03) -> Tensor:
    """log(1 + ‖a − b‖²/(2·c²·n)) of each sample of n numbers, averaged: iLCT's Cauchy loss (arXiv 2502.01441).

    Its scale is c·√n there.
    """
    return torch.log1p(mean_square(a, b) / (2 * c**2)).mean()


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    """Of each sample, (B,)."""
    return (a - b).square().flatten(1).mean(1)


DISTANCES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "huber": huber,
    "l2": lambda a, b, c: F.mse_loss(a, b),
    "huber_norm": huber_norm,
    "cauchy": cauchy,
}
