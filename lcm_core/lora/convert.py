"""A file's modules made into the factors of Delta W = alpha/rank * up @ down, those of fused weights split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..text import listed
from .fusion import part_rows, split, unswapped, unswapped_diff
from .kinds import kinds, kinds_of
from .lowrank import Factors
from .module import Module, finite
from .names import Spelling

# More values than a vector of any diffusion model has as LoHa or LoKr made into factors: 17 GB.
LARGEST_FILE = 2**32
_PROJECTION = re.compile(r"unet\..*attentions\.\d+\.proj_(?:in|out)")


def why_not_a_vector(modules: Sequence[Module]) -> str | None:
    """Why the modules can't be summed as a vector, with their keys, and what to do instead; None if they can."""
    for kind in reversed(kinds()):
        keys = [module.keys[role] for module in modules for role in kind.roles if role in module.keys]
        if keys and kind.not_a_vector:
            why = f"{kind.not_a_vector} ({listed(keys)}). {kind.instead}"
            return f"{kind.name} weights can't be summed as a vector: {why}"
    return None


def read_modules(
    modules: Sequence[Module], rank: int | None = None, convolutions: bool = False
) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """(canonical name -> Factors, canonical name + `.weight` or `.bias` -> difference) of a file's modules.

    modules have passed `check_vector`. convolutions: as of `module_parts`. rank and errors are those of
    `LoRAVector.from_state_dict`.
    """
    found: dict[str, Factors] = {}
    diffs: dict[str, Tensor] = {}
    size = 0
    for module in modules:
        factors, added = module_parts(module, rank, convolutions)
        found |= factors
        diffs |= added
        size += sum(part.up.numel() for part in factors.values())
        size += max((part.down.numel() for part in factors.values()), default=0)
        if size > LARGEST_FILE:
            raise ValueError(
                f"the factors of this file have over {LARGEST_FILE:,} values, which is more than is read; "
                "give a rank, such as 64, to read the nearest vector of that rank"
            )
    return found, diffs


def check_vector(modules: Sequence[Module], rank: int | None) -> None:
    """Raises ValueError for a rank below 1 and for modules that can't be summed as a vector."""
    if rank is not None and rank < 1:
        raise ValueError(f"rank is {rank}; it must be at least 1, such as 64")
    if reason := why_not_a_vector(modules):
        raise ValueError(reason)


def module_parts(
    module: Module, rank: int | None = None, convolutions: bool = False
) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """The same of one module, which a fused weight splits into several.

    convolutions: whether attention's projections are 1x1 convolutions (see `projects_by_convolution`).
    """
    factors, added = module_delta(module, rank)
    diffs: dict[str, Tensor] = {}
    for name, diff in added.items():
        diffs |= _split_diff(module, name.rpartition(".")[2], diff, factors)
    if factors is None:
        return {}, diffs
    if convolutions and "down" not in module.tensors and len(factors.shape) == 2 and _PROJECTION.fullmatch(module.name):
        factors = factors.with_kernel((1, 1))
    parts, swapped = module.spelling.parts, module.spelling.swapped
    return dict(zip(parts, split(module.name, unswapped(factors, swapped), len(parts)), strict=True)), diffs


def apart(module: Module) -> list[Module]:
    """A fused weight's module as one for each part, all with its `down`, for a model that has them apart.

    ValueError where its sizes are no parts'. What is no vector stays whole.
    """
    if why_not_a_vector([module]):
        return [module]
    factors, diffs = module_parts(module)
    found = []
    for part in module.spelling.parts:
        added = {role: diffs.get(f"{part}.{kind}") for kind, role in (("weight", "diff"), ("bias", "diff_b"))}
        tensors = {role: tensor for role, tensor in added.items() if tensor is not None}
        if part in factors:
            alpha = torch.tensor(factors[part].alpha, dtype=torch.float64)
            tensors |= {"down": factors[part].down, "up": factors[part].up, "alpha": alpha}
        found.append(replace(module.with_tensors(tensors), spelling=Spelling((part,), False, part)))
    return found


def module_delta(module: Module, rank: int | None = None) -> tuple[Factors | None, dict[str, Tensor]]:
    """(Delta W, canonical name + `.weight` or `.bias` -> difference of a norm or bias) of a module that is a vector's.

    rank limits that of whole differences, LoHa and LoKr.
    """
    factors, diffs = None, {}
    found = kinds_of(module)
    for kind in found:
        added = kind.factors(module, rank) if kind.factors else None
        if isinstance(added, Factors):
            factors = added
        elif added is not None:
            diffs[f"{module.name}.{kind.parameter}"] = added
    if not found:
        module.need("down", "up")
    if any(diff.ndim != 1 for diff in diffs.values()):
        raise module.misfit()
    computed = [] if factors is None else [factors.down, factors.up]
    if not all(finite(tensor) for tensor in (*computed, *diffs.values()) if not _is_of(module, tensor)):
        raise module.overflow()
    return factors, diffs


def _is_of(module: Module, tensor: Tensor) -> bool:
    """Whether a tensor is the module's own, which is checked already."""
    return any(tensor is own for own in module.tensors.values())


def _split_diff(module: Module, kind: str, diff: Tensor, factors: Factors | None) -> dict[str, Tensor]:
    parts, swapped = module.spelling.parts, module.spelling.swapped
    if len(parts) == 1:
        return {f"{parts[0]}.{kind}": unswapped_diff(diff, factors, swapped)}
    if factors is None:
        raise ValueError(
            f"{listed(module.keys.values())} is the bias of a fused weight that the file has no factors for, so its "
            "parts are unknown; remove it, or apply the file alone"
        )
    rows = part_rows(module.name, len(parts), len(diff), factors.down[0].numel())
    return {f"{part}.{kind}": rest for part, rest in zip(parts, diff.split(rows), strict=True)}
