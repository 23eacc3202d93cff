"""Gram matrices of factors and of dense matrices, and their square roots."""

from __future__ import annotations

import torch
from torch import Tensor

# The share of Delta W's energy within which float32 can't tell a singular value from zero: an error of 1e-6.
ROUNDING = 1e-12
# The share of a row that is no sum of other rows' from which on a Gram matrix counts as singular.
DEPENDENT = 1e-4


def lower_gram(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The lower triangle, at least, of matrix @ matrix.T in `dtype`."""
    rows = len(matrix)
    band = -(-rows // 4)
    gram = matrix.new_zeros(rows, rows, dtype=dtype)
    for columns in matrix.split(4096, dim=1):
        columns = columns.to(dtype)
        for start in range(0, rows, band):
            end = start + band
            gram[start:end, :end].addmm_(columns[start:end], columns[:end].T)
    return gram


def whole_gram(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """matrix @ matrix.T in `dtype`."""
    gram = lower_gram(matrix, dtype).tril_()
    return gram.add_(gram.tril(-1).T)


def gram_root(gram: Tensor) -> tuple[Tensor, Tensor]:
    """(L, its inverse) of a Gram matrix = L L^T, of which the lower triangle is there; of less columns, and rows of the
    pseudoinverse, where it is singular."""
    sizes = or_one(gram.diagonal().sqrt())
    unit = gram / sizes / sizes[:, None]
    root, failed = torch.linalg.cholesky_ex(unit)
    if not failed and root.diagonal().min() > DEPENDENT:
        inverse = torch.linalg.solve_triangular(root, torch.eye(len(root)).to(root), upper=False)
    else:
        values, vectors = torch.linalg.eigh(unit)
        count = max(1, int((values > ROUNDING * values[-1]).sum()))
        vectors, spread = vectors[:, -count:], or_one(values[-count:].sqrt())
        root, inverse = vectors * spread, (vectors / spread).T
    return sizes[:, None] * root, inverse / sizes


def or_one(sizes: Tensor) -> Tensor:
    """Sizes to divide by: those of nothing are 1."""
    return torch.where(sizes > 0, sizes, 1.0)
