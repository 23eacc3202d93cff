"""A LoRA for a weight of another shape, which the model's is padded to with zeros first."""

from __future__ import annotations

import math

from torch import Tensor

from ..module import Module
from .kind import Kind, Role, Size


def _size(module: Module, before: Size) -> Size:
    module.need("down", "up")
    shape = module.tensors["reshape_weight"].flatten().tolist()
    if "dora_scale" in module.tensors or None in before or math.prod(shape) != math.prod(n for n in before if n):
        raise module.misfit()
    return None, None


def _change(module: Module, weight: Tensor) -> Tensor:
    raise ValueError(f"{module.name} changes its weight's shape, which only the host can; apply the file there")


KIND = Kind(
    name="replacement",
    roles={"reshape_weight": Role(".reshape_weight")},
    size=_size,
    change=_change,
    not_a_vector="the file gives a weight another shape, such as more inputs for a control picture",
    instead="Apply the file alone, after a sum of the others",
    modifies=True,
)
