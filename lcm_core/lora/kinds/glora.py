"""GLoRA (arXiv 2306.07967): Delta W = alpha/rank * (W A1 A2 + B1 B2), the A's acting on the input axis."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..module import Module
from .kind import Kind, Role, Size

ROLES = ("a1", "a2", "b1", "b2")


def _factors(module: Module) -> list[Tensor]:
    """A1 (in, rank), A2 (rank, in), B1 (out, rank) and B2 (rank, in*kh*kw).

    Older LyCORIS names them the other way round; where both ways fit, that of the smaller rank is meant.
    """
    tensors = module.need(*ROLES)
    if any(tensor.ndim < 2 for tensor in tensors):
        raise module.misfit()
    a1, a2, b1, b2 = (tensor.flatten(1) for tensor in tensors)
    fitting = [
        factors
        for factors in ([a1, a2, b1, b2], [a2, a1, b2, b1])
        if factors[0].shape == factors[1].T.shape and factors[2].shape[1] == len(factors[3]) == len(factors[1])
    ]
    if not fitting:
        raise module.misfit()
    return min(fitting, key=lambda factors: len(factors[1]))


def _size(module: Module, before: Size) -> Size:
    _, a2, b1, b2 = _factors(module)
    core = module.tensors.get("bm", b2.new_empty(len(a2), len(a2)))
    if core.shape[:2] != (len(a2), len(a2)):
        raise module.misfit()
    return len(b1), b2.shape[1] * math.prod(core.shape[2:])


def _change(module: Module, weight: Tensor) -> Tensor:
    """A Tucker core lies between the B's."""
    a1, a2, b1, b2 = (factor.to(weight) for factor in _factors(module))
    inputs = torch.einsum("oi...,ir,rj->oj...", weight, a1, a2)
    if "bm" in module.tensors:
        outputs = torch.einsum("mn...,om,ni->oi...", module.tensors["bm"].to(weight), b1, b2)
    else:
        outputs = b1 @ b2
    return module.scale(a1.shape[1]) * (inputs + outputs.reshape(weight.shape))


KIND = Kind(
    name="GLoRA",
    roles={role: Role(f".{role}.weight") for role in (*ROLES, "bm")},
    size=_size,
    change=_change,
    not_a_vector="GLoRA multiplies the base weight, so what it adds depends on the base model",
)
