"""Low-rank algebra on the factors of Delta W = alpha/rank * up @ down (LCM-LoRA, arXiv 2311.05556, eq. 1).

Only `Factors.delta` multiplies out a dense matrix, and only `Factors.of_dense` and `decompose` take one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..text import shortened
from .gram import ROUNDING, gram_root, lower_gram, or_one, whole_gram
from .leading import leading

# Values of a dense matrix, 2 GB in float32: half as many again as in the widest layer of a diffusion model (Flux.2's).
LARGEST = 2**29
# Half the power of two of a dense Delta W's largest value up to which nothing of it is lost without scaling.
MODERATE = 10


@dataclass(frozen=True, eq=False)
class Factors:
    """Delta W = alpha/rank * up @ down of one module.

    down (rank, in) or (rank, in, kh, kw), up (out, rank) or (out, rank, 1, 1). Trainers may flatten the down of a
    convolution to (rank, in*kh*kw); such factors add to unflattened ones.
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of Delta W: (out, in) or (out, in, kh, kw)."""
        return (self.up.shape[0], *self.down.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of computed results: float32 or wider."""
        return wide(torch.promote_types(self.down.dtype, self.up.dtype))

    @classmethod
    def of_matrices(cls, down: Tensor, up: Tensor, shape: tuple[int, ...]) -> Factors:
        """From down (rank, in*kh*kw) and up (out, rank) with Delta W = up @ down, so alpha = rank."""
        rank, kernel = down.shape[0], len(shape) - 2
        return cls(down.reshape(rank, *shape[1:]), up.reshape(shape[0], rank, *[1] * kernel), float(rank))

    @classmethod
    def of_dense(cls, delta: Tensor) -> Factors:
        """Delta W (out, in) or (out, in, kh, kw) exactly, as a product with an identity, rank = min(out, in*kh*kw)."""
        matrix = delta.flatten(1)
        rows, columns = matrix.shape
        identity = matrix.new_zeros(min(rows, columns), min(rows, columns)).fill_diagonal_(1)
        return cls.of_matrices(*((matrix, identity) if rows <= columns else (identity, matrix)), delta.shape)

    def matrices(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(down, alpha/rank * up) as matrices (rank, in*kh*kw) and (out, rank)."""
        return self.down.to(dtype).flatten(1), self.up.to(dtype).flatten(1) * (self.alpha / self.rank)

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Factors:
        """In another dtype or on another device; None leaves it."""
        if dtype is None and device is None:
            return self
        return replace(self, down=self.down.to(device, dtype), up=self.up.to(device, dtype))

    def folded(self) -> Factors:
        """The same Delta W with alpha = rank; the factors themselves if alpha is already so, else `dtype` ones."""
        return self if self.alpha == self.rank else self.of_matrices(*self.matrices(self.dtype), self.shape)

    def with_kernel(self, kernel: tuple[int, ...]) -> Factors:
        """A matrix's factors as a convolution's, its kernel unflattened from the input axis."""
        return replace(
            self,
            down=self.down.reshape(self.rank, -1, *kernel),
            up=self.up.reshape(len(self.up), self.rank, *[1] * len(kernel)),
        )

    def delta(self) -> Tensor:
        """Dense Delta W in its weight's shape; infinite where it is beyond `dtype`. ValueError above LARGEST values."""
        check_size("a module", math.prod(self.shape))
        down, up = self.matrices(self.dtype)
        return (up @ down).reshape(self.shape)


@dataclass(frozen=True)
class Limits:
    """How many of a module's singular values s_1 >= s_2 >= ... stay: what the strictest limit leaves, at least one.

    rank:          at most so many
    energy:        the fewest whose squares reach that share of the sum of all squares; in sd-scripts sv_fro squared
    sv_ratio:      those above s_1 / sv_ratio
    sv_cumulative: the fewest whose sum reaches that share of the sum of all
    conv_rank:     the rank of convolutions in place of `rank`: of what has a kernel, 1x1 too, as in sd-scripts

    Raises ValueError for a rank that is not a whole number of at least 1, a share outside (0, 1], a ratio below 1.
    """

    rank: int | None = None
    energy: float | None = None
    sv_ratio: float | None = None
    sv_cumulative: float | None = None
    conv_rank: int | None = None

    def __post_init__(self) -> None:
        for name, rank in (("rank", self.rank), ("conv_rank", self.conv_rank)):
            if rank is not None and (not isinstance(rank, int) or rank < 1):
                raise ValueError(f"{name} is {rank}; it must be a whole number, at least 1, such as 64")
        for name, share in (("energy", self.energy), ("sv_cumulative", self.sv_cumulative)):
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name} is {share}; it is a share in (0, 1], such as 0.99")
        if self.sv_ratio is not None and not 1 <= self.sv_ratio < math.inf:
            raise ValueError(f"sv_ratio is {self.sv_ratio}; it is a finite number of at least 1, such as 10")

    def rank_of(self, shape: tuple[int, ...]) -> int | None:
        """The largest rank of a Delta W of that shape."""
        return self.conv_rank if self.conv_rank is not None and len(shape) > 2 else self.rank

    def kept(self, squares: Tensor, shape: tuple[int, ...]) -> int:
        """How many of the descending squared singular values (float64) of a Delta W stay; those within rounding go."""
        keep = _reaching(squares, min(1.0 if self.energy is None else self.energy, 1.0 - ROUNDING))
        if self.sv_cumulative is not None:
            keep = min(keep, _reaching(squares.sqrt(), self.sv_cumulative))
        if self.sv_ratio is not None:
            keep = min(keep, max(1, int((squares.sqrt() > squares[0].sqrt() / self.sv_ratio).sum())))
        return min(keep, self.rank_of(shape) or keep)


def concatenate(name: str, terms: Sequence[Factors], dtype: torch.dtype | None = None) -> Factors:
    """Exact sum of terms: [up_a up_b] @ [down_a; down_b], each alpha/rank folded into its up alone.

    The rank is the sum of the ranks of terms that are not zero, on the first term's device, in `dtype`; None is float32
    or wider, and a single term as it is. Raises ValueError, naming the module, where shapes differ and for factors
    that `dtype` can't hold.
    """
    shape = max((term.shape for term in terms), key=len)
    for term in terms:
        check_shapes(name, terms[0].shape, term.shape)
    terms = [term for term in terms if term.alpha] or terms[:1]
    if len(terms) == 1 and dtype is None:
        return terms[0]
    dtype = dtype or functools.reduce(torch.promote_types, [term.dtype for term in terms])
    device = terms[0].down.device
    rank = sum(term.rank for term in terms)
    down = torch.empty(rank, math.prod(shape[1:]), dtype=dtype, device=device)
    up = torch.empty(shape[0], rank, dtype=dtype, device=device)
    start = 0
    for term in terms:
        rows = slice(start, start + term.rank)
        down[rows] = term.down.flatten(1)
        wider = term.up.flatten(1).to(device, torch.promote_types(term.up.dtype, dtype))
        torch.mul(wider, term.alpha / term.rank, out=up[:, rows])
        start += term.rank
    return checked(name, Factors.of_matrices(down, up, shape))


def inner_product(name: str, a: Factors, b: Factors) -> float:
    """<Delta W_a, Delta W_b> in float64 as sum((up_a^T up_b) * (down_a down_b^T)), or as sum(up_a * (Delta W_b
    down_a^T)) where the ranks are so high that this is less work. No matrix is larger than the factors.

    Raises ValueError, naming the module, where the shapes differ or the result is beyond float64.
    """
    check_shapes(name, a.shape, b.shape)
    down_a, up_a = a.matrices(torch.float64)
    down_b, up_b = (matrix.to(down_a.device) for matrix in b.matrices(torch.float64))
    rows, columns = len(up_a), down_a.shape[1]
    if a.rank * b.rank * (rows + columns) <= rows * columns * (a.rank + b.rank):
        product = float(((up_a.T @ up_b) * (down_a @ down_b.T)).sum())
    else:
        product = float((up_a * ((up_b @ down_b) @ down_a.T)).sum())
    if not math.isfinite(product):
        raise ValueError(
            f"the inner product of {shortened(name)} is beyond float64's range (alpha {a.alpha:g} and {b.alpha:g}); "
            "scale the vectors down first"
        )
    return product


def truncate(factors: Factors, limits: Limits | int | None = None) -> Factors:
    """The nearest factors of lower rank (Eckart-Young): down = L Q, Q Q^T = 1, and up L = U S V^T by Gram matrices.

    Singular values within rounding of zero always go; at least one stays. A number is a limit of the rank. The factors
    are brought near 1 by powers of two where needed, so that a Delta W beyond its dtype's range has factors too.
    """
    down, down_power = _moderate(factors.down.to(factors.dtype).flatten(1))
    up, up_power = _moderate(factors.up.to(factors.dtype).flatten(1))
    if len(down) > min(len(up), down.shape[1]):
        dense = Factors.of_dense(up @ down)
        down, up = dense.down, dense.up
    root, inverse = gram_root(lower_gram(down, torch.float64))
    values, vectors = torch.linalg.eigh(root.T @ whole_gram(up.T, torch.float64) @ root)
    ratio = values.new_tensor(factors.alpha / factors.rank)
    squares = values.flip(0).clamp(min=0) * ratio.abs().sign()
    keep = _limits(limits).kept(squares, factors.shape)
    vectors, half = vectors.flip(1)[:, :keep], squares[:keep].pow(0.25)
    scale = torch.ldexp(ratio.abs().sqrt(), half.new_tensor(down_power + up_power)).sqrt()
    to_down, to_up = half[:, None] * (vectors.T @ inverse) * scale, root @ vectors / or_one(half) * scale
    down, up = to_down.to(down.dtype) @ down, up @ to_up.mul_(ratio.sign()).to(up.dtype)
    return Factors.of_matrices(down.mul_(scale), up.mul_(scale), factors.shape)


def decompose(delta: Tensor, limits: Limits | int | None = None) -> tuple[Factors, float]:
    """(nearest factors of lower rank of a dense Delta W (out, in, ...), the share of its energy that they hold).

    The truncated SVD from a subspace of `rank` directions (`leading`) where a small rank or the energy is the limit,
    else from the eigenvectors U of the smaller Gram matrix in float64 as U U^T Delta W. Limits and rounding as in
    `truncate`; float32 or wider.
    """
    matrix = delta.to(wide(delta.dtype)).flatten(1)
    matrix, half = _moderate(matrix)
    energy = matrix.norm(dim=1).double().square().sum()
    tall = matrix.shape[0] > matrix.shape[1]
    if tall:
        matrix = matrix.T
    limits = _limits(limits)
    rank = limits.rank_of(tuple(delta.shape))
    by_values = limits.sv_ratio is not None or limits.sv_cumulative is not None
    found = None if rank is None or by_values else leading(matrix, rank)
    if found is None:
        values, vectors = torch.linalg.eigh(lower_gram(matrix, torch.float64))
        squares = values.flip(0).clamp(min=0)
        keep = limits.kept(squares, tuple(delta.shape))
        left = vectors.flip(1)[:, :keep].to(matrix.dtype)
        right = left.T @ matrix
    else:
        left, right, squares = found
        squares = torch.cat([squares, (energy - squares.sum()).clamp(min=0)[None]])
        keep = limits.kept(squares, tuple(delta.shape))
        left, right = left[:, :keep], right[:keep]
    share = float(squares[:keep].sum() / squares.sum()) if squares[0] else 1.0
    root = right.norm(dim=1).sqrt().clamp(min=torch.finfo(matrix.dtype).tiny)
    down, up = (torch.ldexp(side, torch.tensor(half)) for side in (right / root[:, None], left * root))
    return Factors.of_matrices(*((up.T, down.T) if tall else (down, up)), delta.shape), share


def checked(name: str, factors: Factors) -> Factors:
    """The factors. Raises ValueError, naming the module, where they have become infinite in their dtype."""
    for factor in (factors.down, factors.up):
        check_finite(name, factor)
    return factors


def check_finite(name: str, tensor: Tensor) -> None:
    """Raises ValueError, naming the module, for a computed tensor with NaN or infinity."""
    if not all(math.isfinite(end) for end in tensor.aminmax()):
        remedy = "save as float32" if tensor.dtype.itemsize < 4 else "scale the vector down first"
        raise ValueError(
            f"{shortened(name)} is beyond {tensor.dtype}'s largest number, {torch.finfo(tensor.dtype).max:.1e}; "
            f"use smaller weights, or {remedy}"
        )


def check_size(name: str, values: int) -> None:
    """Raises ValueError for a matrix of more than LARGEST values, before it is made."""
    if values > LARGEST:
        raise ValueError(
            f"{shortened(name)} would have {values:,} values and at most {LARGEST:,} are made of one; "
            "the file is damaged, get it again"
        )


def _moderate(matrix: Tensor) -> tuple[Tensor, int]:
    """(a matrix as 4**h times another whose largest value is near 1, h), h = 0 where it is moderate already."""
    least, most = matrix.aminmax()
    half = (int(torch.frexp(torch.maximum(most, -least)).exponent) + 1) // 2
    return (torch.ldexp(matrix, torch.tensor(-2 * half)), half) if abs(half) > MODERATE else (matrix, 0)


def _limits(limits: Limits | int | None) -> Limits:
    return limits if isinstance(limits, Limits) else Limits(limits)


def _reaching(values: Tensor, share: float) -> int:
    """How many of the descending values sum to that share of the sum of all."""
    sums = values.cumsum(0)
    return min(len(values), int((sums < share * sums[-1]).sum()) + 1)


def check_shapes(name: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """Raises ValueError unless the shapes are equal, or one is the other's matrix (out, in*kh*kw)."""
    flattened = min(len(a), len(b)) == 2 and a[0] == b[0] and math.prod(a) == math.prod(b)
    if tuple(a) != tuple(b) and not flattened:
        raise ValueError(
            f"{shortened(name)} is {tuple(a)} in one vector and {tuple(b)} in the other; "
            "add only LoRAs of one architecture"
        )


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32 for narrower dtypes."""
    return dtype if dtype.itemsize > 4 else torch.float32
