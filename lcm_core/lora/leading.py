"""The leading singular vectors of a dense matrix in float32, several times faster than all of them in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .gram import lower_gram, whole_gram

Operator = Callable[[Tensor], Tensor]

# Rows below which all eigenvectors of the Gram matrix cost as little.
SMALLEST = 256
# A Chebyshev filter's degree, and how often one is applied before the exact way is the better one.
DEGREE, FILTERS = 4, 6
# How many products with a subspace are usual.
PRODUCTS = 8
# How many steps with the matrix itself may follow.
STEPS = 3
# The residual that is allowed, of the singular vectors' own size: an error of the product below 1e-4.
RESIDUAL = 2e-5
# The square of a singular value, of the largest one's, that float32 can't tell from zero in a Gram matrix.
FLOOR = 1e-6


def leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """(left (rows, b), right (b, columns), squares (b)) of a matrix (rows <= columns), b >= rank, or None.

    left has orthonormal columns and left @ right is the matrix on them, its rows orthogonal and of the squared norms
    `squares` (float64, descending). The first `rank` are the truncated SVD: a subspace of the Gram matrix's, filtered
    by Chebyshev polynomials (Zhou & Saad, 2007), and where the residual is too large, steps with the matrix itself:
    ||A v - s u|| of all `rank` together is at most RESIDUAL of ||s||. Where s_rank and the next are nearly equal, the
    vectors are any that hold the same energy.

    None where that would not be faster, where singular values to keep are within float32's rounding of zero, where the
    residual stays too large, and for other dtypes.
    """
    width = 2 * rank
    if matrix.dtype != torch.float32 or len(matrix) < max(SMALLEST, 2 * width):
        return None
    basis = _subspace(_operator(matrix, width), matrix.new_zeros(len(matrix), width), rank)
    if basis is None:
        return None
    part = basis[:, :rank]
    for _ in range(STEPS):
        left, right, squares = _turned(part, matrix)
        values = squares.sqrt().to(matrix.dtype).clamp(min=torch.finfo(matrix.dtype).tiny)
        residual = matrix @ right.T / values - left * values
        if residual[:, :rank].norm() <= RESIDUAL * values[:rank].norm():
            return left, right, squares
        part = basis = torch.linalg.qr(matrix @ (matrix.T @ basis))[0]
    return None


def _operator(matrix: Tensor, width: int) -> Operator:
    """What multiplies `width` columns by matrix @ matrix.T: by that itself, or by both where this is less work."""
    if 1.25 * len(matrix) > 4 * PRODUCTS * width:  # operations for each of the matrix's values
        return lambda columns: matrix @ (matrix.T @ columns)
    gram = whole_gram(matrix, matrix.dtype)
    return lambda columns: gram @ columns


def _subspace(times: Operator, start: Tensor, rank: int) -> Tensor | None:
    """An orthonormal basis (rows, width) that holds the `rank` leading eigenvectors of a symmetric matrix.

    times: multiplies by that. start: zeros of the basis's size, whose numbers are drawn here.
    """
    basis = torch.randn(start.shape, generator=torch.Generator().manual_seed(0), dtype=start.dtype).to(start.device)
    for _ in range(2):
        basis = torch.linalg.qr(times(basis))[0]
    for _ in range(FILTERS):
        image = times(basis)
        values, turn = torch.linalg.eigh((basis.T @ image).double())
        values, turn = values.flip(0), turn.flip(1).to(basis.dtype)
        if not values[rank - 1] > FLOOR * values[0]:
            return None
        basis, image = basis @ turn, image @ turn
        sizes = values.to(basis.dtype)
        residual = (image - basis * sizes)[:, :rank] / sizes[:rank].sqrt()
        if residual.norm() <= RESIDUAL * sizes[:rank].sum().sqrt():
            return basis
        basis = torch.linalg.qr(_filtered(times, basis, image, float(values[-1])))[0]
    return None


def _filtered(times: Operator, basis: Tensor, image: Tensor, end: float) -> Tensor:
    """T(A) basis of the Chebyshev polynomial that stays within [-1, 1] on [0, end]; image is A basis = times(basis)."""
    half = end / 2
    before, now = basis, (image - half * basis) / half
    for _ in range(DEGREE - 1):
        before, now = now, (times(now) - half * now) * (2 / half) - before
    return now / now.norm(dim=0)


def _turned(basis: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular vectors of a matrix on an orthonormal basis, as `leading` has them."""
    part = basis.T @ matrix
    gram = lower_gram(part, torch.float64)
    values, turn = torch.linalg.eigh(gram)
    turn = turn.flip(1).to(matrix.dtype)
    return basis @ turn, turn.T @ part, values.flip(0).clamp(min=0)
