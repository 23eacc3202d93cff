"""The halves of a LoHa or LoKr: two matrices, each a product of small factors or whole, whose product of another kind
is Delta W.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from .lowrank import Factors, check_size, decompose, truncate, wide
from .module import Module

# Convolutions of a Stable Diffusion UNet, whose kernels a LoHa or LoKr file flattens into the input axis.
_KERNELS = (
    (re.compile(r"unet\.(?:(?:down|up|mid)_blocks?\..*\.)?conv(?:[12]|_in|_out)?"), (3, 3)),
    (re.compile(r"unet\..*\.conv_shortcut"), (1, 1)),
)


@dataclass(frozen=True)
class Half:
    """up (out, rank), down (rank, in*kh*kw) and the kernel if the file tells it.

    whole is their product (out, in*kh*kw) where the file has that.
    """

    up: Tensor
    down: Tensor
    kernel: tuple[int, ...]
    whole: Tensor | None = None

    @property
    def rank(self) -> int:
        return len(self.down)

    def matrix(self) -> Tensor:
        return self.up @ self.down if self.whole is None else self.whole


def product_half(module: Module, a: Tensor, b: Tensor, core: str) -> Half:
    """a (out, rank), b (rank, in) or (rank, in, kh, kw). With a Tucker core (rank, rank, kh, kw): a (rank, out), b
    (rank, in), and the half is sum_ij core[i, j] a[i] b[j].
    """
    middle = module.tensors.get(core)
    dtype = torch.promote_types(wide(a.dtype), wide(b.dtype))
    a, b = a.to(dtype), b.to(dtype)
    if middle is None:
        if a.ndim < 2 or b.ndim < 2 or a.flatten(1).shape[1] != b.shape[0]:
            raise module.misfit()
        return Half(a.flatten(1), b.flatten(1), tuple(b.shape[2:]))
    if a.ndim != 2 or b.ndim != 2 or middle.ndim < 3 or middle.shape[:2] != (a.shape[0], b.shape[0]):
        raise module.misfit()
    check_size(module.name, middle.numel() // len(b) * b.shape[1])
    down = torch.einsum("ij...,jn->in...", middle.to(dtype), b)
    return Half(a.T.contiguous(), down.flatten(1), tuple(middle.shape[2:]))


def whole_half(whole: Tensor) -> Half:
    """A matrix or a convolution's kernel (out, in, ...)."""
    matrix = whole.to(wide(whole.dtype)).flatten(1)
    factors = Factors.of_dense(matrix)
    return Half(factors.up, factors.down, tuple(whole.shape[2:]), matrix)


def weight_shape(name: str, rows: int, columns: int, kernel: tuple[int, ...]) -> tuple[int, ...]:
    """The weight's shape, its kernel from the file or, for a flattened convolution of a UNet, by the module's name."""
    if not kernel:
        kernel = next((size for pattern, size in _KERNELS if pattern.fullmatch(name)), ())
        if columns % math.prod(kernel):
            kernel = ()
    return (rows, columns // math.prod(kernel), *kernel)


def of_dense(delta: Tensor, limit: int | None) -> Factors:
    """Factors of a dense Delta W, exact or the nearest of rank `limit`."""
    if limit is None or limit >= min(delta.flatten(1).shape):
        return Factors.of_dense(delta)
    return decompose(delta, limit)[0]


def limited(factors: Factors, limit: int | None) -> Factors:
    return factors if limit is None or factors.rank <= limit else truncate(factors, limit)
