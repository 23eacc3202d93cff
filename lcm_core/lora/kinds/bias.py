"""What is added to a layer's bias, (out,): a difference as it is, or a LoRA's own (PEFT's lora_bias) by alpha/rank."""

from __future__ import annotations

from torch import Tensor

from ..lowrank import wide
from ..module import Module
from .kind import Kind, Role, Size


def _difference(module: Module, limit: int | None = None) -> Tensor:
    if "bias" not in module.tensors:
        return module.tensors["diff_b"]
    down, bias = module.need("down", "bias")
    return bias.to(wide(bias.dtype)) * module.scale(len(down))


def _size(module: Module, before: Size) -> Size:
    if {"bias", "diff_b"} <= module.tensors.keys():
        raise module.mixed()
    if "bias" in module.tensors:
        module.need("down", "up")
    bias = module.tensors["bias" if "bias" in module.tensors else "diff_b"]
    if bias.ndim != 1:
        raise module.misfit()
    return len(bias), 1


def _normal(module: Module) -> Module:
    rest = {role: tensor for role, tensor in module.tensors.items() if role != "bias"}
    return module.with_tensors({**rest, "diff_b": _difference(module)})


KIND = Kind(
    name="difference",
    roles={
        "diff_b": Role(".diff_b", r"\.b_norm"),
        "bias": Role(".lora_B.bias", r"\.lora_B\.[^.]+\.bias"),
    },
    size=_size,
    change=lambda module, bias: _difference(module),
    factors=_difference,
    normal=_normal,
    parameter="bias",
)
