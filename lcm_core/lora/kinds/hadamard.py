"""LoHa (FedPara, arXiv 2108.06098): Delta W = alpha/rank * (A B) * (C D), entry by entry."""

from __future__ import annotations

import torch
from torch import Tensor

from ..halves import Half, limited, of_dense, product_half, weight_shape
from ..lowrank import Factors, check_size
from ..module import Module
from .kind import Kind, Role, Size

ROLES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")


def _factors(module: Module, limit: int | None) -> Factors:
    """One product of rank r1 r2, exactly.

    Its up is A[o, i] C[o, j] and its down B[i, n] D[j, n], the rank's index running over the pairs (i, j).
    """
    a, b = _halves(module)
    scale = module.scale(_rank(module) or 1)
    rows, columns, inner = len(a.up), a.down.shape[1], a.rank * b.rank
    shape = weight_shape(module.name, rows, columns, a.kernel)
    if inner >= min(rows, columns):
        check_size(module.name, rows * columns)
        return of_dense((scale * a.matrix() * b.matrix()).reshape(shape), limit)
    check_size(module.name, (rows + columns) * inner)
    pairs_up = torch.einsum("oi,oj->oij", scale * a.up, b.up).flatten(1)
    pairs_down = torch.einsum("in,jn->ijn", a.down, b.down).flatten(0, 1)
    return limited(Factors.of_matrices(pairs_down, pairs_up, shape), limit)


def _halves(module: Module) -> tuple[Half, Half]:
    w1_a, w1_b, w2_a, w2_b = module.need(*ROLES[:4])
    a, b = product_half(module, w1_a, w1_b, "hada_t1"), product_half(module, w2_a, w2_b, "hada_t2")
    if len(a.up) != len(b.up) or a.down.shape[1] != b.down.shape[1] or a.kernel != b.kernel:
        raise module.misfit()
    return a, b


def _size(module: Module, before: Size) -> Size:
    a, _ = _halves(module.shapes())
    module.alpha(_rank(module) or 1)
    return len(a.up), a.down.shape[1]


def _rank(module: Module) -> int | None:
    inner = module.tensors.get("hada_w1_b")
    return inner.shape[0] if inner is not None and inner.ndim else None


def _change(module: Module, weight: Tensor) -> Tensor:
    a, b = _halves(module)
    return (module.scale(_rank(module) or 1) * a.matrix() * b.matrix()).reshape(weight.shape)


KIND = Kind(
    name="LoHa",
    roles={role: Role(f".{role}", rf"\.{role}\.[^.]+") for role in ROLES},
    size=_size,
    change=_change,
    factors=_factors,
    rank=_rank,
)
