"""Every kind of adapter, one file each: LoRA, LoHa, LoKr, whole differences, biases, DoRA, GLoRA, OFT, replacements.

A kind is found by its file here. `split_key` and the functions below look up which kinds a module of a file has.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from functools import cache, lru_cache

import torch
from torch import Tensor

from ..module import Module
from .kind import Kind, Role, Size

ALPHA = Role(".alpha")
# What trainers write beside a LoRA and ComfyUI skips.
STRAY = Role(".diff_m", r"_norm\.scale")


@cache
def kinds() -> tuple[Kind, ...]:
    """Every kind of this folder, those that modify another last."""
    modules = [importlib.import_module(f".{module.name}", __name__) for module in pkgutil.iter_modules(__path__)]
    found = [module.KIND for module in modules if hasattr(module, "KIND")]
    return tuple(sorted(found, key=lambda kind: kind.modifies))


@cache
def _roles() -> dict[str, Role]:
    roles = {role: ending for kind in kinds() for role, ending in kind.roles.items()}
    return {**roles, "alpha": ALPHA, "stray": STRAY}


@cache
def _suffix() -> re.Pattern[str]:
    endings = (f"(?P<{role}>{re.escape(ending.native)}|{ending.others})" for role, ending in _roles().items())
    return re.compile(rf"(?=[._])(?:{'|'.join(endings)})\Z")


@lru_cache(maxsize=1 << 16)
def split_key(key: str) -> tuple[str, str] | None:
    """(module as the file spells it, role) of a state-dict key, None if it is not a LoRA key.

    The role is a kind's, "alpha", or "stray" for what is left out.
    """
    match = _suffix().search(key, 1)
    return (key[: match.start()], str(match.lastgroup)) if match else None


def role_of(key: str) -> str:
    """The role of a state-dict key, "" if it is not a LoRA key."""
    return (split_key(key) or ("", ""))[1]


def native_suffix(role: str) -> str:
    """How ComfyUI's key of a tensor of this role ends."""
    return _roles()[role].native


def kinds_of(module: Module) -> tuple[Kind, ...]:
    """The kinds that a module has parts of, in the order in which they change a weight.

    Raises ValueError for two that would both say what is added.
    """
    found = _kinds_with(frozenset(module.tensors))
    whole = [kind.parameter for kind in found if not kind.modifies]
    if len(whole) > len(set(whole)):
        raise module.mixed()
    return found


@lru_cache(maxsize=1 << 10)
def _kinds_with(roles: frozenset[str]) -> tuple[Kind, ...]:
    return tuple(kind for kind in kinds() if not kind.roles.keys().isdisjoint(roles))


def sizes_of(module: Module) -> dict[str, Size]:
    """Canonical name + `.weight` or `.bias` -> the size that it must have in the model."""
    sizes: dict[str, Size] = {}
    for kind in kinds_of(module):
        parameter = f"{module.name}.{kind.parameter}"
        sizes[parameter] = kind.size(module, sizes.get(parameter, (None, None)))
    if not sizes:
        module.need("down", "up")
    return sizes


def normal(module: Module) -> Module:
    """The module with the tensors that ComfyUI reads as they are meant, the alpha of PEFT's config included.

    Raises ValueError for an incomplete module, two kinds in one, parts that don't fit each other, and a kind that is
    not applied.
    """
    sizes_of(module)
    for kind in kinds_of(module):
        if not kind.applied:
            raise module.not_applied()
        if "alpha" not in module.tensors and module.config and (rank := kind.rank(module)):
            alpha = torch.tensor(module.alpha(rank), dtype=torch.float64)
            module = module.with_tensors({**module.tensors, "alpha": alpha})
        module = kind.normal(module)
    return module


def change(module: Module, weight: Tensor) -> Tensor:
    """W' - W in the shape of W (out, in, ...), for a module that is `normal` and whose size fits W.

    module's tensors are on W's device. float32 or wider if W is.
    """
    total = None
    for kind in kinds_of(module):
        if kind.parameter == "weight":
            added = kind.change(module, weight if total is None else weight + total)
            total = added if total is None else total + added
    if total is None:
        raise module.not_applied()
    return total
