"""Flux' control LoRAs: norms as whole weights, and a first layer with inputs for the control picture.

Black Forest Labs names the norms' weights like parameters of the network, diffusers too; ComfyUI sets them, and pads
the first layer's weight with zeros to the LoRA's inputs. They have no alpha: it is the rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import torch

from .module import Module
from .names import read_name

NORM = re.compile(r"(?P<norm>.*\.(?:query|key)_norm)\.scale|(?P<of_diffusers>.*\.attn\.norm_(?:added_)?[qk])\.weight")
FIRST_LAYER = re.compile(r"(?P<module>.*)\.lora_A\.weight")
# What every such file has, and ComfyUI knows one by.
NORM_THERE, FIRST = "transformer.single_transformer_blocks.0.attn.norm_k", "transformer.x_embedder"


def control_keys(keys: Iterable[str]) -> dict[str, str]:
    """Key of a norm's weight in a control LoRA -> as ComfyUI calls it, ending in `.set_weight`; {} for other files."""
    keys = list(keys)
    norms = {key: found["norm"] or found["of_diffusers"] for key in keys if (found := NORM.fullmatch(key))}
    if not any(read_name(norm).name == NORM_THERE for norm in norms.values()):
        return {}
    if not any(read_name(found["module"]).name == FIRST for key in keys if (found := FIRST_LAYER.fullmatch(key))):
        return {}
    return {key: f"{norm}.set_weight" for key, norm in norms.items()}


def reshaped(module: Module) -> Module:
    """The module of a control LoRA; its first layer with the shape that the weight is padded to."""
    if module.name != FIRST or not {"down", "up"} <= module.tensors.keys() or "reshape_weight" in module.tensors:
        return module
    shape = torch.tensor([len(module.tensors["up"]), *module.tensors["down"].shape[1:]])
    return replace(
        module,
        keys={**module.keys, "reshape_weight": module.keys["down"]},
        tensors={**module.tensors, "reshape_weight": shape},
    )
