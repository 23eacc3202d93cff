"""A LORA_MODEL on a MODEL: where its modules go, their patches, and what is said of them."""

import logging
from collections.abc import Collection, Mapping

import comfy.lora
import comfy.weight_adapter
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor

from ...lcm_core.lora import architecture
from ...lcm_core.lora.convert import apart
from ...lcm_core.lora.file import LoRAFile
from ...lcm_core.lora.kinds import Size, change, native_suffix, sizes_of
from ...lcm_core.lora.lowrank import wide
from ...lcm_core.lora.module import Module
from ...lcm_core.lora.names import flat, read_name
from ...lcm_core.text import listed, shortened
from .lora_model import file_of
from .targets import find_targets, targets_of, weight_shape

# What the host applies as it is meant: a plain LoRA and whole weights.
HOST_ROLES = {"down", "up", "alpha", "reshape_weight", "set_weight"}


class Effect(comfy.weight_adapter.WeightAdapterBase):
    """`weights` = ((role, tensor), ...) of a module, applied by `lcm_core.lora.kinds`.

    The host skips or misreads several: convolutions with a Tucker core, a rescaled or constrained OFT, DoRA.
    """

    name = "lcm_lora"

    def __init__(self, loaded_keys, weights):
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(self, weight, key, strength, strength_model, offset, function, *args, **kwargs):
        tensors = {role: tensor.to(weight.device) if tensor.ndim else tensor for role, tensor in self.weights}
        module = Module(read_name(str(key)), {role: role for role in tensors}, tensors, {})
        weight += function((strength * change(module, weight.to(wide(weight.dtype)))).to(weight.dtype))
        return weight


def module_patches(module: Module, target: str | tuple) -> dict:
    """The host's patches of a module by target: its own for a plain LoRA and what it sets, `Effect` for the rest."""
    tensors = dict(module.tensors)
    patches: dict = {}
    if (bias := tensors.pop("diff_b", None)) is not None:
        key, *rest = (target,) if isinstance(target, str) else target
        of_bias = f"{key.removesuffix('.weight')}.bias"
        patches[(of_bias, *rest) if rest else of_bias] = ("diff", (bias,))
    if tensors.keys() <= HOST_ROLES or ("diff" in tensors and tensors["diff"].ndim < 2):
        named = {module.name + native_suffix(role): tensor for role, tensor in tensors.items()}
        patches |= comfy.lora.load_lora(named, {module.name: target}, log_missing=False)
    else:
        patches[target] = Effect(set(module.keys.values()), tuple(tensors.items()))
    return patches


def fitted(file: LoRAFile, targets: Collection[str]) -> tuple[dict[str, Module], dict[str, Size]]:
    """(a file's modules by name, their sizes), fused weights as their parts where the model has those alone.

    targets: as of `model_targets`.
    """
    modules = {module.name: module for module in file.normal_modules}
    sizes = dict(file.sizes)
    for module in file.normal_modules:
        parts = module.spelling.parts
        if len(parts) > 1 and flat(module.name) not in targets and all(flat(part) in targets for part in parts):
            del modules[module.name]
            sizes = {name: size for name, size in sizes.items() if name.rpartition(".")[0] != module.name}
            for part in apart(module):
                modules[part.name] = part
                sizes |= sizes_of(part)
    return modules, sizes


def misshapen(patcher, modules: Mapping[str, Module], targets: Mapping[str, str | tuple]) -> dict[str, str]:
    """Name -> what differs, of the modules whose weight can't be padded to their shape, or was padded to another."""
    found = {}
    for name, target in targets.items():
        tensors = modules[name].tensors
        adapters = [patch for _, patch, *_ in patcher.patches.get(target, ()) if isinstance(patch, LoRAAdapter)]
        before = [tuple(adapter.weights[5]) for adapter in adapters if adapter.weights[5] is not None]
        if not isinstance(target, str) or tensors.keys() == {"diff_b"} or not (before or "reshape_weight" in tensors):
            continue
        have = weight_shape(patcher.model, target)
        if "reshape_weight" in tensors:
            padded = tuple(tensors["reshape_weight"].tolist())
            have = (before or [have])[-1]
            if len(padded) != len(have) or any(a < b for a, b in zip(padded, have, strict=True)):
                found[name] = f"{shortened(name)}.weight is padded to {padded} by the LoRA and {have} in the model"
        elif before and before[-1] != have:
            found[name] = f"another LoRA padded {shortened(name)}.weight to {before[-1]}, apply that one after this"
    return found


def add_modules(patcher, modules: Mapping[str, Module], targets: Mapping[str, str | tuple], strength: float):
    """(clone of the ModelPatcher with the modules' patches at their targets, names of those that it did not take)."""
    patches: dict = {}
    own = {}
    for name, target in targets.items():
        own[name] = {key: patch for key, patch in module_patches(modules[name], target).items() if key not in patches}
        patches |= own[name]
    patcher = patcher.clone()
    taken = set(patcher.add_patches(patches, strength))
    return patcher, [name for name, keys in own.items() if not keys or not keys.keys() <= taken]


def apply_vector(
    model, lora: Mapping[str, Tensor], strength: float, source: str = "this LoRA", clip=None, leave_out: bool = False
):
    """(clone of the MODEL with W + strength·ΔW, clone of the CLIP if there is one, a line that says how much matched).

    lora: any LORA_MODEL, vector or not. leave_out: whether modules of another size than the model's are left out.
    Nothing is half applied: without it they are a ValueError, naming both, as is a LoRA that fits nothing.
    """
    file = file_of(lora)
    targets = targets_of(model.model, comfy.lora.model_lora_keys_unet)
    modules, sizes = fitted(file, targets)
    swapped = {name for name, module in modules.items() if module.spelling.swapped}
    units, texts = parts_of(sizes)
    found, misfits = find_targets(model.model, targets, units, swapped)
    found_texts: dict = {}
    if clip is not None:
        targets = targets_of(clip.cond_stage_model, comfy.lora.model_lora_keys_clip)
        found_texts, text_misfits = find_targets(clip.cond_stage_model, targets, texts)
        misfits |= text_misfits
    misfits |= misshapen(model, modules, found)
    found = {name: target for name, target in found.items() if name not in misfits}
    both = purposes(source, file, type(model.model.model_config).__name__)
    if misfits and not leave_out:
        raise ValueError(
            f"{both}: {listed(misfits.values(), 1)}; use a LoRA made for this architecture, or leave out what misfits"
        )
    if sizes and not {*found, *found_texts}:
        raise ValueError(
            f"none of the {len(modules)} modules of {source} is in the model: {both}; "
            + ("connect a CLIP, they are a text encoder's" if not units else "use one made for it")
        )
    model, left = add_modules(model, modules, found, strength)
    if clip is not None:
        clip, left_texts = add_modules(clip, modules, found_texts, strength)
        left += left_texts
    parts = [{name.rpartition(".")[0] for name in sizes} for sizes in (units, texts)]
    in_model, in_texts = (f"{len(part & {*found, *found_texts} - {*left})} of {len(part)}" for part in parts)
    rank = max((len(module.tensors["down"]) for module in modules.values() if "down" in module.tensors), default=None)
    lines = [f"{source}: {in_model} modules, {f'rank {rank}, ' if rank else ''}strength {strength:g}"]
    if texts and clip is None:
        lines.append(f"{len(parts[1])} text encoder modules are left out, connect a CLIP to apply them")
    elif texts:
        lines.append(f"{in_texts} text encoder modules")
    done = [modules[name].tensors for name in {*found, *found_texts} - {*left}]
    whole, padded = (sum(role in tensors for tensors in done) for role in ("set_weight", "reshape_weight"))
    if whole or padded:
        lines.append(f"{whole} weights set, {padded} reshaped, whatever the strength")
    if misfits:
        lines.append(f"left out, of another size than the model's: {listed(misfits)}")
    if left:
        lines.append(f"not applied, without a place in the model of their own: {listed(left)}")
    report = "; ".join([*lines, *file.notes])
    logging.info("LCM-LoRA: %s", report)
    return model, clip, report


def parts_of(sizes: Mapping[str, Size]) -> tuple[dict[str, Size], dict[str, Size]]:
    """The sizes that are of the model and those of text encoders."""
    texts = {name: size for name, size in sizes.items() if name.startswith(("text_encoder", "lora_te"))}
    return {name: size for name, size in sizes.items() if name not in texts}, texts


def purposes(source: str, file: LoRAFile, model: str) -> str:
    """What a LoRA is for, beside the host's name of the model that it meets, as errors say it."""
    return f"{source} is for {shortened(architecture(file.sizes, file.lasting_metadata))} and the model is {model}"
