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
        return fuse(sparse, [weights[i] for i, _ in terms]).reshape(shape)

    return merged


def keep_largest(density: float, skipped: float = 0.0) -> Sparsify:
    """Of the values by magnitude, the share `density` stays that follows the largest share `skipped`."""

    def sparsify(name: str, index: int, matrix: Tensor) -> Tensor:
        if density == 1:
            return matrix
        kept, values = torch.zeros_like(matrix).flatten(), matrix.flatten()
        stop = len(values) - int(skipped * len(values))
        start = stop - int(density * len(values))
        ends = [min(end, len(values) - 1) for end in (start, stop)]
        order = np.argpartition(values.abs().cpu().numpy(), ends)
        band = torch.from_numpy(order[start:stop]).to(matrix.device)
        kept[band] = values[band]
        return kept.reshape(matrix.shape)

    return sparsify


def keep_randomly(density: float, seed: int) -> Sparsify:
    """DARE's pruning: each value stays with chance `density` and is divided by it."""

    def sparsify(name: str, index: int, matrix: Tensor) -> Tensor:
        return matrix * random_mask(name, index, tuple(matrix.shape), density, seed).to(matrix.device) / density

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
        total = total + matrix * weight
    return total


def elected_mean(majority_sign_method: str) -> Fuse:
    """TIES's election and mean: of each place the mean of the weighted values that have the majority's sign, which is
    that of the values' sum ("total") or of most values ("frequency")."""

    def merge(matrices: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        votes = matrices if majority_sign_method == "total" else [matrix.sign() for matrix in matrices]
        elected = weighted_sum(votes, [1.0] * len(votes)) >= 0
        agree = [torch.where(elected, matrix > 0, matrix < 0) for matrix in matrices]
        total = weighted_sum([matrix * agreed for matrix, agreed in zip(matrices, agree, strict=True)], weights)
        count = weighted_sum([agreed.to(total.dtype) for agreed in agree], [1.0] * len(agree))
        return total / count.clamp(min=1)

    return merge
