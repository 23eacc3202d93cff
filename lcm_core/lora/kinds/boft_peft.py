"""BOFT (arXiv 2311.06243) as PEFT has it, on the inputs; known, and not applied."""

from __future__ import annotations

from torch import Tensor

from ..module import Module
from .kind import Kind, Role, Size
from .oft import WHY


def _size(module: Module, before: Size) -> Size:
    """Of boft_R (m, n, b, b) and boft_s, which has a number a row."""
    rotations, scales = module.need("boft_R", "boft_s")
    if rotations.ndim != 4:
        raise module.misfit()
    return scales.numel(), rotations.shape[1] * rotations.shape[2]


def _change(module: Module, weight: Tensor) -> Tensor:
    raise module.not_applied()


KIND = Kind(
    name="OFT",
    roles={role: Role(f".{role}", rf"\.{role}(?:\.\w+)+") for role in ("boft_R", "boft_s")},
    size=_size,
    change=_change,
    not_a_vector=WHY,
    applied=False,
)
