"""LoKr (LyCORIS, arXiv 2309.14859): Delta W = alpha/rank * kron(A B, C D), each half a product or a whole matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from ...text import shortened
from ..halves import Half, limited, of_dense, product_half, weight_shape, whole_half
from ..lowrank import Factors, check_size
from ..module import Module
from ..peft_config import module_number
from .kind import Kind, Role, Size

ROLES = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")


def _factors(module: Module, limit: int | None) -> Factors:
    """kron(A B, C D) = kron(A, C) kron(B, D)."""
    a, b = _halves(module)
    rows, columns, inner = len(a.up) * len(b.up), a.down.shape[1] * b.down.shape[1], a.rank * b.rank
    shape = weight_shape(module.name, rows, columns, b.kernel)
    scale = _scale(module)
    if inner >= min(rows, columns):
        check_size(module.name, rows * columns)
        return of_dense(torch.kron(scale * a.matrix(), b.matrix()).reshape(shape), limit)
    check_size(module.name, (rows + columns) * inner)
    return limited(Factors.of_matrices(torch.kron(a.down, b.down), torch.kron(scale * a.up, b.up), shape), limit)


def _halves(module: Module) -> tuple[Half, Half]:
    halves = []
    for half in ("lokr_w1", "lokr_w2"):
        if half in module.tensors:
            whole = module.tensors[half]
            if whole.ndim < 2 or module.tensors.keys() & {f"{half}_a", f"{half}_b"}:
                raise module.misfit()
            halves.append(whole_half(whole))
        else:
            a, b = module.need(f"{half}_a", f"{half}_b")
            halves.append(product_half(module, a, b, "lokr_t2" if half == "lokr_w2" else ""))
    if halves[0].kernel or {"lokr_t2", "lokr_w2"} <= module.tensors.keys():
        raise module.misfit()
    return halves[0], halves[1]


def _rank(module: Module) -> int | None:
    """None for two whole matrices."""
    inner = next((module.tensors[role] for role in ("lokr_w2_b", "lokr_w1_b") if role in module.tensors), None)
    return inner.shape[0] if inner is not None and inner.ndim else None


def _scale(module: Module) -> float:
    """alpha/rank; 1 for two whole matrices, unless PEFT's config has an alpha and a rank."""
    rank = _rank(module)
    if rank is not None:
        return module.scale(rank)
    rank = int(module_number(module.spelling.dotted, module.config, "rank_pattern", "r") or 0)
    if rank < 0:
        raise ValueError(f"r of {shortened(module.name)} is {rank} in the adapter's metadata; it is at least 1")
    return module.scale(rank) if rank and "alpha" not in module.tensors else 1.0


def _size(module: Module, before: Size) -> Size:
    a, b = _halves(module.shapes())
    _scale(module)
    return len(a.up) * len(b.up), a.down.shape[1] * b.down.shape[1]


def _change(module: Module, weight: Tensor) -> Tensor:
    a, b = _halves(module)
    return torch.kron(_scale(module) * a.matrix(), b.matrix()).reshape(weight.shape)


def _normal(module: Module) -> Module:
    """The config's scale of two whole matrices, which ComfyUI has no key for, is multiplied into the first."""
    if _rank(module) is not None or (scale := _scale(module)) == 1:
        return module
    return module.with_tensors({**module.tensors, "lokr_w1": module.tensors["lokr_w1"] * scale})


KIND = Kind(
    name="LoKr",
    roles={role: Role(f".{role}", rf"\.{role}\.[^.]+") for role in ROLES},
    size=_size,
    change=_change,
    factors=_factors,
    rank=_rank,
    normal=_normal,
)
