"""Pruning and election of the values of dense Delta W, of which several combine methods are made."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .lowrank import check_shapes
from .names import flat
from .terms import Merge, Terms

# Values of the bands in which dense matrices are merged.
BAND = 2**17

# (canonical name, index of the vector, Delta W (out, in*kh*kw)) -> Delta W with values dropped.
Sparsify = Callable[[str, int, Tensor], Tensor]
# (sparse Delta W of each vector, their weights) -> merged.
Fuse = Callable[[Sequence[Tensor], Sequence[float]], Tensor]


def dense(weights: Sequence[float], sparsify: Sparsify, fuse: Fuse) -> Merge:
    """`fuse` of the sparsified Delta W, each (out, in*kh*kw). Never more than one module's are there at once."""

    def merged(name: str, terms: Terms) -> Tensor:
        first = terms[0][1]
        sparse = []
        for i, factors in terms:
            check_shapes(name, first.shape, factors.shape)
            sparse.append(sparsify(name, i, factors.delta().flatten(1)).to(first.down.device))
        shape = max((factors.shape for _, factors in terms), key=len)
        return _in_bands(fuse, sparse, [weights[i] for i, _ in terms]).reshape(shape)

    return merged


def _in_bands(fuse: Fuse, matrices: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """`fuse`, which looks at each place alone, of a few rows after another: what it makes stays in the cache."""
    rows = max(1, BAND // matrices[0].shape[1])
    return torch.cat([fuse(band, weights) for band in zip(*(matrix.split(rows) for matrix in matrices), strict=True)])


def keep_largest(density: float, skipped: float = 0.0) -> Sparsify:
    """Of the values by magnitude, the share `density` stays that follows the largest share `skipped`."""

    def sparsify(name: str, index: int, matrix: Tensor) -> Tensor:
        if density == 1:
            return matrix
        skip, count = int(skipped * matrix.numel()), int(density * matrix.numel())
        sizes = matrix.abs().flatten().cpu().numpy()
        kept = _largest(matrix, sizes, skip + count)
        return kept - _largest(matrix, sizes, skip) if skip else kept

    return sparsify


def _largest(matrix: Tensor, sizes: np.ndarray, count: int) -> Tensor:
    """The `count` largest values by magnitude, of equal ones those first in order, and 0 elsewhere.

    sizes: the magnitudes, in any order, which is changed.
    """
    if not count:
        return torch.zeros_like(matrix)
    start = len(sizes) - count
    sizes.partition(start)
    least = sizes[start]
    kept = torch.nn.functional.hardshrink(matrix, float(np.nextafter(least, -least.dtype.type(np.inf))))
    if start and least and sizes[:start].max() == least:
        left_out = np.count_nonzero(sizes[:start] == least)
        equal = (matrix.abs().flatten() == float(least)).nonzero().flatten()
        kept.view(-1)[equal[-left_out:]] = 0
    return kept


def keep_randomly(density: float, seed: int) -> Sparsify:
    """DARE's pruning: each value stays with chance `density` and is divided by it."""

    def sparsify(name: str, index: int, matrix: Tensor) -> Tensor:
        mask = random_mask(name, index, tuple(matrix.shape), density, seed)
        return (matrix * mask.to(matrix.device)).div_(density)

    return sparsify


def random_mask(name: str, index: int, shape: tuple[int, ...], density: float | Tensor, seed: int) -> Tensor:
    """The draw for a module of vector `index`: (out, in*kh*kw), True (the value stays) with chance `density`, which may
    be a tensor of that shape. It depends on the seed, the index and the module's name alone."""
    digest = hashlib.sha256(f"{seed} {index} {flat(name)}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
    return torch.rand(shape[0], math.prod(shape[1:]), generator=generator) < density


def weighted_sum(matrices: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = matrices[0] * weights[0]
    for matrix, weight in zip(matrices[1:], weights[1:], strict=True):
        total += matrix * weight
    return total


def elected_mean(majority_sign_method: str) -> Fuse:
    """TIES's election and mean: of each place the mean of the weighted values that have the majority's sign, which is
    that of the values' sum ("total") or of most values ("frequency")."""

    def merge(matrices: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        votes = matrices if majority_sign_method == "total" else [matrix.sign() for matrix in matrices]
        sign = torch.copysign(torch.ones_like(matrices[0]), sum(votes[1:], votes[0]))
        total, count = torch.zeros_like(sign), torch.zeros_like(sign)
        for matrix, weight in zip(matrices, weights, strict=True):
            agrees = (matrix * sign).gt_(0)
            total.addcmul_(matrix, agrees, value=weight)
            count += agrees
        return total.div_(count.clamp_(min=1))

    return merge
