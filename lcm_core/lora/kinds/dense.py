"""A whole difference of a weight, (out, in, ...), or of a norm's weight, (out,)."""

from __future__ import annotations

import math

from torch import Tensor

from ..halves import of_dense
from ..lowrank import Factors, wide
from ..module import Module
from .kind import Kind, Role, Size


def _size(module: Module, before: Size) -> Size:
    (difference,) = module.need("diff")
    if difference.ndim == 0:
        raise module.misfit()
    return difference.shape[0], math.prod(difference.shape[1:])


def _change(module: Module, weight: Tensor) -> Tensor:
    (difference,) = module.need("diff")
    return difference.to(wide(difference.dtype)).reshape(weight.shape)


def _factors(module: Module, limit: int | None) -> Factors | Tensor:
    (difference,) = module.need("diff")
    return of_dense(difference, limit) if difference.ndim > 1 else difference


KIND = Kind(name="difference", roles={"diff": Role(".diff", r"\.w_norm")}, size=_size, change=_change, factors=_factors)
