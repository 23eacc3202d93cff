"""A vector under the names and numbers of a dialect, module by module, as files have it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..text import listed, shortened
from .fusion import fuse, unswapped, unswapped_diff
from .lowrank import Factors
from .metadata import family_names
from .names.writing import Written, write_names

if TYPE_CHECKING:
    from .vector import LoRAVector

_ROLES = (("weight", "diff"), ("bias", "diff_b"))
_FACTORS = {"peft": ("lora_A", "lora_B")}


def keys_of(vector: LoRAVector, dialect: str) -> list[str]:
    """All keys that `tensors_of` may give, from the vector's names alone."""
    factors = [f"{place.name}.{end}.weight" for place in _modules(vector, dialect) for end in _ends(dialect)]
    alphas = [f"{place.name}.alpha" for place in _modules(vector, dialect)]
    return [*factors, *alphas, *(f"{place.name}.{role}" for role, place, _ in _diffs(vector, dialect))]


def tensors_of(
    vector: LoRAVector, dialect: str, dtype: torch.dtype | None = None, fold: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """(key, tensor) of a vector in a dialect, one module after another, alphas at the end.

    Modules of rank 0 and diffs without values, as `combine_lazily` has them, are left out.

    fold: whether alpha/rank goes into `up`, so that alpha = rank. dtype and errors as of `LoRAVector.state_dict`.
    """
    alphas = {}
    down, up = _ends(dialect)
    for place in _modules(vector, dialect):
        parts = [vector.modules[part] for part in place.parts]
        if not any(part.rank for part in parts):
            continue
        parts = [part if part.rank else _zero(part) for part in parts]
        factors = unswapped(fuse(place.name, parts), place.swapped)
        written = factors.folded() if fold else factors
        alphas[place.name] = written.alpha
        for end, tensor in ((down, written.down), (up, written.up)):
            key = f"{place.name}.{end}.weight"
            as_it_is = written is factors and tensor.dtype == (dtype or tensor.dtype)
            yield key, tensor if as_it_is else cast(key, tensor, dtype or tensor.dtype)
    for role, place, whole in _diffs(vector, dialect):
        diff = torch.cat([vector.diffs[part] for part in whole])
        if not len(diff):
            continue
        if place.swapped:
            diff = unswapped_diff(diff, vector.modules.get(place.parts[0]), True)
        key = f"{place.name}.{role}"
        yield key, cast(key, diff, dtype or diff.dtype) if fold or dtype else diff
    of_transformer = any(name.startswith("transformer.") for name in vector.modules)
    if dialect == "native" or (dialect == "kohya" and (of_transformer or len(set(alphas.values())) == 1)):
        for name, alpha in alphas.items():
            yield f"{name}.alpha", cast(f"{name}.alpha", torch.tensor(alpha, dtype=torch.float64), torch.float32)


def cast(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Raises ValueError, naming the key, for a value that dtype can't hold."""
    converted = tensor.to(dtype)
    if not all(math.isfinite(end) for end in converted.aminmax()):
        largest = float(tensor.abs().max())
        raise ValueError(
            f"{shortened(key)} reaches {largest:g}, which {dtype} can't hold; scale the vector down, or save as float32"
        )
    return converted


def _zero(part: Factors) -> Factors:
    """A part of rank 0 as one of rank 1, which fused weights need."""
    rows, *rest = part.shape
    return Factors(torch.zeros(1, *rest), torch.zeros(rows, 1, *[1] * (len(rest) - 1)), 1.0)


def _ends(dialect: str) -> tuple[str, str]:
    return _FACTORS.get(dialect, ("lora_down", "lora_up"))


def _modules(vector: LoRAVector, dialect: str) -> list[Written]:
    if dialect == "peft" and vector.diffs:
        raise ValueError(
            f"PEFT has no name for the {len(vector.diffs)} norm and bias differences of this vector "
            f"({listed(vector.diffs)}); save as kohya or native"
        )
    return _places(vector, dialect, vector.modules)


def _diffs(vector: LoRAVector, dialect: str) -> Iterator[tuple[str, Written, list[str]]]:
    """(role, the module's place, the names of its parts' differences)."""
    for kind, role in _ROLES:
        names = [name.removesuffix(f".{kind}") for name in vector.diffs if name.endswith(f".{kind}")]
        for place in _places(vector, dialect, names):
            yield role, place, [f"{part}.{kind}" for part in place.parts]


def _places(vector: LoRAVector, dialect: str, names: Iterable[str]) -> list[Written]:
    among = [*vector.modules, *(name.rpartition(".")[0] for name in vector.diffs)]
    return write_names(names, dialect, family_names(vector.metadata), among)
