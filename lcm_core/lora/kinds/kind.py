"""What an adapter kind is to the rest: the keys of its tensors, its size, its factors, and its effect on a weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..lowrank import Factors
from ..module import Module

# (out, in*kh*kw) of the weight that an adapter fits, None where it leaves that open.
Size = tuple[int | None, int | None]


@dataclass(frozen=True)
class Role:
    """How the key of a tensor ends: as ComfyUI has it, and a pattern of what other programs write."""

    native: str
    others: str = r"(?!)"


@dataclass(frozen=True)
class Kind:
    """One way to adapt a weight, as a file of this folder states it in KIND.

    name:      what a report calls it
    roles:     role -> how the key of that tensor ends; no other kind has the role
    size:      (module, size by the kinds before it) -> the size of the weight that it fits, from the shapes of its
               tensors alone. ValueError where they don't fit each other
    change:    (module, W (out, in, ...)) -> W' - W in W's shape, float32 or wider
    factors:   (module, limit on the rank or None) -> Delta W as factors, or as it is where it has one dimension
    not_a_vector: why a module has no factors: what it adds depends on the base model. Then `factors` is None
    instead:   what to do with a file of such modules instead
    rank:      the rank that alpha is divided by, None where there is none
    normal:    the module with the tensors that ComfyUI would read as they are meant
    parameter: what of a layer is adapted
    modifies:  whether it goes with another kind, of whose W' it makes its own
    applied:   whether there is a `change` that can be added to a model's weight
    """

    name: str
    roles: Mapping[str, Role]
    size: Callable[[Module, Size], Size]
    change: Callable[[Module, Tensor], Tensor]
    factors: Callable[[Module, int | None], Factors | Tensor] | None = None
    not_a_vector: str = ""
    instead: str = "Apply the file to its base model and extract a plain LoRA from the difference"
    rank: Callable[[Module], int | None] = lambda module: None
    normal: Callable[[Module], Module] = lambda module: module
    parameter: Literal["weight", "bias"] = "weight"
    modifies: bool = False
    applied: bool = True
