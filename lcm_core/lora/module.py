"""The modules of a LoRA file: the tensors of each by role, checked, and its alpha by the file or its config."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..text import listed, quoted, shortened
from .keys import HADAMARD, KRONECKER, split_key
from .names import Spelling, canonical_name, flat, read_name

REFUSED = {
    "DoRA": "DoRA rescales the whole weight after adding, so what it adds depends on the base model",
    "GLoRA": "GLoRA multiplies the base weight, so what it adds depends on the base model",
    "OFT": "OFT rotates the base weight, so what it adds depends on the base model",
    "replacement": "the file replaces or reshapes weights in place of adding to them",
}
LORA = ("down", "up", "mid")
CONFIG = "lora_adapter_metadata"
# Says of a file with PEFT's names, which have none for alpha, that alpha is the rank: `LoRAVector.save` writes it.
ALPHA_IS_RANK = {"lcm_lora.alpha": "rank"}
# PEFT's initialisations that take the initial factors out of the base model's weights, by how they begin.
CHANGING_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Module:
    """One module of a file: what its name stands for, role -> key, role -> checked tensor, and the file's PEFT config,
    {} if it has none.
    """

    spelling: Spelling
    keys: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    config: Mapping[str, object]

    @property
    def name(self) -> str:
        """The canonical name, of a fused weight the parts' names."""
        return self.spelling.name

    @property
    def kinds(self) -> list[tuple[str, ...]]:
        """Which of LoRA, LoHa and LoKr the module has parts of."""
        return [kind for kind in (LORA, HADAMARD, KRONECKER) if self.keys.keys() & set(kind)]

    def need(self, *roles: str) -> list[Tensor]:
        for role in roles:
            if role not in self.tensors:
                raise ValueError(
                    f"{shortened(self.name)} has {listed(self.keys.values(), 9)} but no {role} factor; "
                    "the file is incomplete, get it again"
                )
        return [self.tensors[role] for role in roles]

    def misfit(self) -> ValueError:
        shapes = (f"{shortened(key)} {tuple(self.tensors[role].shape)}" for role, key in self.keys.items())
        return ValueError(
            f"the factors of {shortened(self.name)} don't fit each other: {listed(shapes, 9)}; "
            "the file is damaged, get it again"
        )

    def mixed(self) -> ValueError:
        return ValueError(
            f"{shortened(self.name)} is adapted in more than one way ({listed(self.keys.values(), 9)}); "
            "save each in a file of its own"
        )

    def overflow(self) -> ValueError:
        return ValueError(
            f"the product of {listed(self.keys.values(), 9)} is beyond its numbers' range; "
            "the file is damaged, get it again"
        )

    def alpha(self, rank: int) -> float:
        """The alpha of alpha/rank: the file's, else by PEFT's config, else the rank."""
        stored = self.tensors.get("alpha")
        if stored is None:
            alpha = _adapter_entry(self.name, self.config, "alpha_pattern", "lora_alpha", "alpha")
            component = self.name.partition(".")[0]
            if alpha is None:
                alpha = float(rank)
            elif self.config.get(f"{component}.use_rslora", self.config.get("use_rslora")):
                alpha *= math.sqrt(rank)
        elif stored.numel() != 1 or stored.is_complex():
            raise self.misfit()
        else:
            alpha = float(stored)
        if not math.isfinite(alpha):
            raise ValueError(
                f"alpha of {shortened(self.name)} is {alpha}; it must be a finite number, the rank {rank} if in doubt"
            )
        return alpha

    def rank(self) -> int | None:
        """The rank that alpha is divided by, None for a LoKr of two whole matrices and what has no factors."""
        last = next((role for role in ("lokr_w2_b", "lokr_w1_b", "hada_w1_b", "down") if role in self.tensors), None)
        return self.tensors[last].shape[0] if last and self.tensors[last].ndim else None

    def scale(self) -> float:
        """alpha/rank; 1 for a LoKr of two whole matrices, unless PEFT's config has an alpha and a rank."""
        rank = self.rank()
        if rank is None:
            rank = int(_adapter_entry(self.name, self.config, "rank_pattern", "r") or 0)
            if rank < 0:
                raise ValueError(f"r of {shortened(self.name)} is {rank} in the adapter's metadata; it is at least 1")
            return self.alpha(rank) / rank if rank and "alpha" not in self.tensors else 1.0
        return self.alpha(rank) / rank


def file_modules(state_dict: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[Module]:
    """The modules of a file.

    Raises ValueError for unknown keys, a module in two dialects, values not finite, and a PEFT adapter whose
    initialisation changed the base model too.
    """
    config = _adapter_config(metadata)
    for key, value in config.items():
        name = key.rpartition(".")[2]
        if name == "init_lora_weights" and str(value).lower().startswith(CHANGING_THE_BASE):
            reason = f"init_lora_weights={quoted(value)}"
        elif name == "kasa_config" and value:
            reason = "KaSA"
        else:
            continue
        raise ValueError(
            f"the adapter was made with PEFT's {reason}, which changed the base model too, so the file alone is not "
            "the difference; save it with save_pretrained(folder, path_initial_model_for_weight_conversion=the folder "
            "of the untrained adapter), or merge it into its base model with PEFT and extract a LoRA from the result"
        )
    return [Module(spelling, k, _checked(state_dict, k), config) for spelling, k in _grouped(state_dict)]


def reading_notes(keys: Iterable[str], metadata: Mapping[str, str]) -> tuple[str, ...]:
    """What reading a file with these keys had to assume or leave out."""
    keys = list(keys)
    stray = [key for key in keys if (split_key(key) or ("", ""))[1] == "stray"]
    left_out = f"{len(stray)} tensors are no LoRA weights and left out ({listed(stray, 2)})" if stray else None
    return tuple(filter(None, (_alpha_note(keys, metadata), left_out)))


def _alpha_note(keys: Iterable[str], metadata: Mapping[str, str]) -> str | None:
    """What to say where a file with PEFT's names leaves alpha open, which is then taken to be the rank; else None."""
    if ALPHA_IS_RANK.items() <= metadata.items():
        return None
    config = _adapter_config(metadata)
    keys = list(keys)
    stated = {split[0] for key in keys if (split := split_key(key)) and split[1] == "alpha"}
    open_ones = [
        split[0]
        for key in keys
        if (split := split_key(key))
        and split[1] == "down"
        and key[len(split[0]) :].startswith(".lora_A")
        and split[0] not in stated
        and _adapter_entry(canonical_name(split[0]), config, "alpha_pattern", "lora_alpha", "alpha") is None
    ]
    if not open_ones:
        return None
    return (
        f"no alpha in the file for {len(open_ones)} modules ({listed(open_ones, 1)}); took alpha = rank. If it was "
        "trained with another, multiply the strength by alpha/rank, or put the file, as adapter_model.safetensors, "
        "into a folder with its adapter_config.json"
    )


def _grouped(state_dict: Mapping[str, Tensor]) -> list[tuple[Spelling, dict[str, str]]]:
    """(what a module's name stands for, role -> key) of each, checked for unknown keys and modules that appear twice.

    The tensors of a refused kind have their suffixes as roles, a DoRA's magnitude excepted.
    """
    unknown = [key for key in state_dict if split_key(key) is None]
    if unknown:
        raise ValueError(f"no LoRA weights that are known: {listed(unknown)}; use a file with LoRA weights only")
    modules: dict[str, dict[str, str]] = {}
    taken: dict[str, tuple[str, str]] = {}
    for key in state_dict:
        module, role = split_key(key) or ("", "")
        if role == "stray":
            continue
        if role in REFUSED and role != "DoRA":
            role = key.removeprefix(module)
        keys = modules.setdefault(module, {})
        for part in read_name(module).parts:
            other, first_key = taken.setdefault(flat(part), (module, key))
            if other != module or role in keys:
                raise ValueError(
                    f"{shortened(keys.get(role, first_key))} and {shortened(key)} are the same module "
                    f"{shortened(part)} twice; save each LoRA in a file of its own and add them as vectors"
                )
        keys[role] = key
    return [(read_name(module), keys) for module, keys in modules.items()]


def _checked(state_dict: Mapping[str, Tensor], keys: Mapping[str, str]) -> dict[str, Tensor]:
    """Role -> tensor: real numbers, all finite, in a dtype that can be computed with."""
    tensors = {}
    for role, key in keys.items():
        tensor = state_dict[key].detach()
        if role != "alpha" and not role.endswith("reshape_weight"):
            if not tensor.is_floating_point() or tensor.numel() == 0:
                raise ValueError(
                    f"{shortened(key)} is {tuple(tensor.shape)} of {tensor.dtype}; a LoRA's weights are floating-point "
                    "numbers, at least one. The file is damaged or quantized, get it again"
                )
            if tensor.dtype.itemsize == 1:
                try:
                    tensor = tensor.to(torch.bfloat16)
                except NotImplementedError as error:
                    raise ValueError(
                        f"{shortened(key)} is of {tensor.dtype}, which can't be converted; get a float16 file"
                    ) from error
            if not finite(tensor):
                raise ValueError(f"{shortened(key)} has NaN or infinite values; the file is damaged, get it again")
        tensors[role] = tensor
    return tensors


def finite(tensor: Tensor) -> bool:
    """Whether a tensor, of at least one value, has neither NaN nor infinity; one on the meta device is taken to be."""
    return tensor.is_meta or all(math.isfinite(end) for end in tensor.aminmax())


def _adapter_config(metadata: Mapping[str, str]) -> dict[str, object]:
    text = metadata.get(CONFIG)
    try:
        config = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{CONFIG} is not JSON ({shortened(error)}); remove it or correct it") from error
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG} {quoted(text)} is not a JSON object; remove it or correct it")
    return config


def _adapter_entry(name: str, config: Mapping[str, object], patterns: str, *entries: str) -> float | None:
    """PEFT's number for a module: by `patterns` (a path or its end), else the first of the entries that is there."""
    component, _, path = name.partition(".")

    def entry(key: str) -> object:
        return config.get(f"{component}.{key}", config.get(key))

    found: object = next((entry(key) for key in entries if entry(key) is not None), None)
    by_module = entry(patterns)
    for pattern, value in by_module.items() if isinstance(by_module, dict) else ():
        ending = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if not re.fullmatch(r"[\w.]+", ending):
            raise ValueError(f"{patterns} {quoted(pattern)} is not a module path; write one pattern per module path")
        if ending in (name, path) if pattern.startswith("^") else f".{name}".endswith(f".{ending}"):
            found = value
            break
    if found is None:
        return None
    if not isinstance(found, (int, float)) or not abs(found) < 1e30:
        raise ValueError(
            f"{entries[0]} of {shortened(name)} is {quoted(found)} in the adapter's metadata; "
            "it must be a finite number"
        )
    return float(found)
