"""A whole weight in place of the model's, (out, in, ...)."""

from __future__ import annotations

import math

from torch import Tensor

from ..module import Module
from .kind import Kind, Role, Size


def _size(module: Module, before: Size) -> Size:
    weight = module.tensors["set_weight"]
    if not weight.ndim:
        raise module.misfit()
    return weight.shape[0], math.prod(weight.shape[1:])


def _change(module: Module, weight: Tensor) -> Tensor:
    return module.tensors["set_weight"].to(weight).reshape(weight.shape) - weight


KIND = Kind(
    name="replacement",
    roles={"set_weight": Role(".set_weight")},
    size=_size,
    change=_change,
    not_a_vector="the file replaces weights in place of adding to them",
)
