"""PEFT's adapter_config, which its files need to be read: alphas by module, and what changed the base model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from ..text import quoted, shortened

# The metadata entry that holds it, as diffusers writes it.
CONFIG = "lora_adapter_metadata"
# Says of a file with PEFT's names, which have none for alpha, that alpha is the rank: `LoRAVector.save` writes it.
ALPHA_IS_RANK = {"lcm_lora.alpha": "rank"}
# PEFT's initialisations that take the initial factors out of the base model's weights, by how they begin.
CHANGING_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

Config = Mapping[str, object]


def adapter_config(metadata: Mapping[str, str]) -> Config:
    """The config of a file's metadata, {} if it has none.

    Raises ValueError for text that is no JSON object, and for an adapter whose initialisation changed the base model.
    """
    text = metadata.get(CONFIG)
    try:
        config = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{CONFIG} is not JSON ({shortened(error)}); remove it or correct it") from error
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG} {quoted(text)} is not a JSON object; remove it or correct it")
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
    return config


def module_number(name: str, config: Config, patterns: str, *entries: str) -> float | None:
    """PEFT's number for a module of this dotted name in the file: by `patterns` (a path or its end), else the first of
    the entries that is there.
    """
    component, _, path = name.partition(".")

    def entry(key: str) -> object:
        return config.get(f"{component}.{key}", config.get(key))

    found: object = next((entry(key) for key in entries if entry(key) is not None), None)
    by_module = entry(patterns)
    for pattern, value in by_module.items() if isinstance(by_module, dict) else ():
        ending = re.sub(r"\\([.-])", r"\1", pattern.removeprefix("^").removesuffix("$"))
        if not re.fullmatch(r"[\w.-]+", ending):
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


def alpha_of(name: str, config: Config) -> float | None:
    """The config's alpha of a module, None if it does not say."""
    return module_number(name, config, "alpha_pattern", "lora_alpha", "alpha")


def uses_rslora(name: str, config: Config) -> bool:
    """Whether a module's scale is alpha/sqrt(rank)."""
    return bool(config.get(f"{name.partition('.')[0]}.use_rslora", config.get("use_rslora")))
