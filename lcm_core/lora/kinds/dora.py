"""DoRA (arXiv 2402.09353): a LoRA, LoHa, LoKr or difference, after which each row of the weight gets a norm."""

from __future__ import annotations

import torch
from torch import Tensor

from ..module import Module
from .kind import Kind, Role, Size


def rescaled(weight: Tensor, magnitude: Tensor) -> Tensor:
    """Eq. 5: each row of W + Delta W (out, in, ...) gets the norm `magnitude`, (out, 1, ...).

    A magnitude (1, in, ...) is per input, as in older LyCORIS files.
    """
    axis = 0 if len(magnitude) == len(weight) else 1
    norms = weight.transpose(0, axis).flatten(1).norm(dim=1).clamp(min=torch.finfo(weight.dtype).tiny)
    shape = [1] * weight.ndim
    shape[axis] = -1
    return weight * (magnitude.to(weight).flatten() / norms).reshape(shape)


def _size(module: Module, before: Size) -> Size:
    if before == (None, None):
        module.need("down", "up")
    rows, columns = before
    magnitude = module.tensors["dora_scale"]
    if magnitude.numel() == rows and (_is_peft(module) or (magnitude.ndim and len(magnitude) == rows)):
        return before
    if magnitude.ndim > 1 and magnitude.numel() == magnitude.shape[1] and (columns or 1) % magnitude.shape[1] == 0:
        return before
    raise module.misfit()


def _is_peft(module: Module) -> bool:
    return "magnitude" in module.keys["dora_scale"]


def _change(module: Module, weight: Tensor) -> Tensor:
    return rescaled(weight, module.tensors["dora_scale"]) - weight


def _normal(module: Module) -> Module:
    """PEFT's magnitudes (out,) become (out, 1, ...)."""
    magnitude = module.tensors["dora_scale"]
    if not _is_peft(module) and magnitude.ndim != 1:
        return module
    up = module.tensors.get("up")
    shaped = magnitude.reshape(-1, *[1] * (up.ndim - 1 if up is not None else 1))
    return module.with_tensors({**module.tensors, "dora_scale": shaped})


KIND = Kind(
    name="DoRA",
    roles={"dora_scale": Role(".dora_scale", r"\.lora_magnitude_vector(?:\.[^.]+)*")},
    size=_size,
    change=_change,
    not_a_vector="DoRA rescales the whole weight after adding, so what it adds depends on the base model",
    normal=_normal,
    modifies=True,
)
