"""OFT (arXiv 2306.07280) on the inputs, as PEFT has it: W diag(R_1, ..., R_n)^T."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...text import quoted, shortened
from ..module import Module
from .kind import Kind, Role, Size
from .oft import WHY


def rotated(weight: Tensor, rotations: Tensor) -> Tensor:
    """W diag(R_1, ..., R_n)^T for R (n, b, b), one for all blocks if n is 1."""
    size = rotations.shape[-1]
    blocks = weight.reshape(len(weight), -1, size)
    rotations = rotations.to(weight).expand(blocks.shape[1], size, size)
    return torch.einsum("onb,ncb->onc", blocks, rotations).reshape(weight.shape)


def _size(module: Module, before: Size) -> Size:
    rotations = module.tensors["oft_R"]
    if rotations.ndim == 3 and rotations.shape[1] == rotations.shape[2]:
        width = rotations.shape[1]
    else:
        width = _triangle_width(module)
    return None, len(rotations) * width if len(rotations) > 1 else None


def _triangle_width(module: Module) -> int:
    """The b of upper triangles (n, b(b-1)/2)."""
    values = module.tensors["oft_R"].shape[-1] if module.tensors["oft_R"].ndim == 2 else 0
    width = (1 + math.isqrt(1 + 8 * values)) // 2
    if not values or width * (width - 1) // 2 != values:
        raise module.misfit()
    return width


def _normal(module: Module) -> Module:
    """The rotations R (n, b, b) of the file's upper triangles (n, b(b-1)/2) of skew Q: (I - Q)(I + Q)^-1, or its
    series.
    """
    vectors = module.tensors["oft_R"]
    if vectors.ndim != 2:
        return module
    if module.config.get("coft"):
        raise ValueError(
            f"{shortened(module.name)} is constrained OFT, which isn't read; merge it into its base model with PEFT"
        )
    count, size = len(vectors), _triangle_width(module)
    rows, columns = torch.triu_indices(size, size, 1)
    skew = torch.zeros(count, size, size)
    skew[:, rows, columns] = vectors.float()
    return module.with_tensors({**module.tensors, "oft_R": _cayley(module, skew - skew.transpose(1, 2))})


def _cayley(module: Module, skew: Tensor) -> Tensor:
    eye = torch.eye(skew.shape[-1]).expand_as(skew)
    if not module.config.get("use_cayley_neumann", True):
        return torch.linalg.solve(eye + skew, eye - skew, left=False)
    terms = module.config.get("num_cayley_neumann_terms", 5)
    if not isinstance(terms, int) or not 1 <= terms <= 100:
        raise ValueError(
            f"num_cayley_neumann_terms is {quoted(terms)} in the adapter's metadata; it is 1 to 100, such as 5"
        )
    total, power = eye.clone(), eye
    last = terms - 1 if terms < 3 else max(terms - 1, 3)
    for i in range(1, last + 1):
        power = power @ skew
        total += power if i == last > 2 else 2 * power
    return total


KIND = Kind(
    name="OFT",
    roles={"oft_R": Role(".oft_R", r"\.oft_R(?:\.\w+)+")},
    size=_size,
    change=lambda module, weight: rotated(weight, module.tensors["oft_R"]) - weight,
    not_a_vector=WHY,
    normal=_normal,
)
