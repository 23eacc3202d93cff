"""LoRA and LoCon: Delta W = alpha/rank * up @ down, with a Tucker core between them in some convolutions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..lowrank import Factors, check_size, wide
from ..module import Module
from .kind import Kind, Role, Size

_FACTOR = r"(?:\.lora|\.lora_linear_layer|_lora|(?<=_lora[12]))"


def factors(module: Module, limit: int | None = None) -> Factors:
    """The file's own factors; their rank is small already, so a limit leaves it."""
    down, up = module.need("down", "up")
    middle = module.tensors.get("mid")
    rank = _rank(module) or 0
    inner = up.flatten(1).shape[1] if up.ndim > 1 else 0
    if middle is None:
        fits = rank == inner
    else:
        fits = middle.ndim > 2 and middle.shape[:2] == (inner, rank) and math.prod(down.shape[2:]) == 1
    if not (rank and fits):
        raise module.misfit()
    alpha = module.alpha(rank)
    if middle is not None:
        check_size(module.name, middle.numel() // rank * down.flatten(1).shape[1])
        dtype = wide(middle.dtype)
        down = torch.einsum("rs...,si->ri...", middle.to(dtype), down.flatten(1).to(dtype))
        alpha *= inner / rank
    return Factors(down, up, alpha)


def _size(module: Module, before: Size) -> Size:
    if "mid" in module.tensors:
        rows, *rest = factors(module.shapes()).shape
        return rows, math.prod(rest)
    down, up = module.need("down", "up")
    if down.ndim < 2 or up.ndim < 2 or down.shape[0] != math.prod(up.shape[1:]) or not down.shape[0]:
        raise module.misfit()
    module.alpha(down.shape[0])
    return up.shape[0], math.prod(down.shape[1:])


def _rank(module: Module) -> int | None:
    down = module.tensors.get("down")
    return down.shape[0] if down is not None and down.ndim > 1 else None


def _change(module: Module, weight: Tensor) -> Tensor:
    return factors(module).delta().reshape(weight.shape)


def _normal(module: Module) -> Module:
    """A Tucker core is multiplied into `down`: the host skips it in convolutions."""
    if "mid" not in module.tensors:
        return module
    whole = factors(module)
    rest = {role: tensor for role, tensor in module.tensors.items() if role != "mid"}
    alpha = torch.tensor(whole.alpha, dtype=torch.float64)
    return module.with_tensors({**rest, "down": whole.down, "up": whole.up, "alpha": alpha})


KIND = Kind(
    name="LoRA",
    roles={
        "down": Role(".lora_down.weight", rf"\.lora_A(?:(?:\.[^.]+)?\.weight)?|{_FACTOR}\.down\.weight"),
        "up": Role(".lora_up.weight", rf"\.lora_B(?:(?:\.[^.]+)?\.weight)?|{_FACTOR}\.up\.weight"),
        "mid": Role(".lora_mid.weight"),
    },
    size=_size,
    change=_change,
    factors=factors,
    rank=_rank,
    normal=_normal,
)
