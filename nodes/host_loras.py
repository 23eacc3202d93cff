"""ComfyUI's internals for LoRA vectors: its LoRA files, its LORA_MODEL, and its patches of a model's weights."""

import copy
import difflib
import json
import logging
import re
import time
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath

import comfy.lora
import comfy.utils
import comfy.weight_adapter
import folder_paths
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor

from ..lcm_core import atomic
from ..lcm_core.files import output_path, write_new
from ..lcm_core.lora import LoRAVector, architecture
from ..lcm_core.lora.convert import apart
from ..lcm_core.lora.file import LoRAFile, named
from ..lcm_core.lora.kinds import Size, change, native_suffix, sizes_of
from ..lcm_core.lora.lowrank import wide
from ..lcm_core.lora.module import Module
from ..lcm_core.lora.names import flat, read_name
from ..lcm_core.lora.record import EXPRESSION, PARENTS, file_record
from ..lcm_core.lora.sampling import recipe_of, recorded
from ..lcm_core.text import listed, quoted, shortened
from .host.files import model_path
from .host.recipes import recipes
from .host.targets import find_targets, model_targets, weight_shape

# What the host applies as it is meant: a plain LoRA and whole weights.
HOST_ROLES = {"down", "up", "alpha", "reshape_weight", "set_weight"}


def lora_files() -> list[str]:
    return folder_paths.get_filename_list("loras")


def load_lora(name: str) -> "LoRATensors":
    """A LORA_MODEL of the host's loras folders with the file's own adapters, vectors or not; errors name the file."""
    path = lora_path(name)
    file = LoRAFile.read(path)
    with named(path):
        return LoRATensors(file, file_record(path))


def load_vector(name: str) -> "LoRATensors":
    """The same of a file that is a vector, which says how it is sampled if it is an accelerator.

    What reading it had to assume is in the log.
    """
    lora = load_lora(name)
    found = recipe_of(name, lora.file, sha256=sha256_of(lora), recipes=recipes())
    lora = lora.saying(recorded(found))
    with named(lora_path(name)):
        to_vector(lora)
    for note in lora.notes:
        logging.warning("LCM-LoRA: %s: %s", name, note)
    return lora


def sha256_of(lora: "LoRATensors") -> str:
    """The SHA-256 of the file that a LORA_MODEL was loaded from."""
    (parent,) = json.loads(lora.record[PARENTS])
    return parent["sha256"]


def save_new(prefix: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """The path of a new file in the output folder, numbered so that nothing is overwritten; its folder is made.

    ValueError for a prefix that leads out of the output folder or is no file name on every system.
    """
    output = folder_paths.get_output_directory()
    prefix = re.sub("%date:([^%]+)%", lambda match: dated(match[1], time.localtime()), prefix)
    output_path(output, prefix, "_00001_.safetensors")
    folder, name, *_ = folder_paths.get_save_image_path(prefix, output)
    return write_new(folder, name, tensors, metadata)


def dated(text: str, now: time.struct_time) -> str:
    """A pattern such as yyyy-MM-dd as ComfyUI's front end fills it in for its own saving nodes alone."""
    numbers = {"d": now.tm_mday, "M": now.tm_mon, "h": now.tm_hour, "m": now.tm_min, "s": now.tm_sec}

    def written(match: re.Match) -> str:
        letters = match[0]
        if letters[0] == "y":
            return f"{now.tm_year:04}"[-len(letters) :]
        return str(numbers[letters[0]]).zfill(len(letters))

    return re.sub("yyyy|yy|dd?|MM?|hh?|mm?|ss?", written, text)


def remove_leftovers() -> None:
    """Deletes what killed processes left half-written where the nodes save by default."""
    for folder in ("loras", "lcm_training"):
        atomic.remove_leftovers(Path(folder_paths.get_output_directory()) / folder)


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
        have = weight_shape(patcher.model, target) if isinstance(target, str) else None
        if have is None or tensors.keys() == {"diff_b"}:
            continue
        adapters = [patch for _, patch, *_ in patcher.patches.get(target, ()) if isinstance(patch, LoRAAdapter)]
        before = [tuple(adapter.weights[5]) for adapter in adapters if adapter.weights[5] is not None]
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
    targets = model_targets(model.model, comfy.lora.model_lora_keys_unet(model.model, {}))
    modules, sizes = fitted(file, targets)
    swapped = {name for name, module in modules.items() if module.spelling.swapped}
    units, texts = parts_of(sizes)
    found, misfits = find_targets(model.model, targets, units, swapped)
    found_texts: dict = {}
    if clip is not None:
        targets = model_targets(clip.cond_stage_model, comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}))
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


class LoRATensors(dict[str, Tensor]):
    """A LORA_MODEL, the host's dict of tensors, of a file or a vector, which is parsed and checked once for all nodes.

    record: what vectors that are made of it say of it (`lcm_core.lora.record`).
    """

    def __init__(self, source: LoRAFile | LoRAVector, record: Mapping[str, str]) -> None:
        is_file = isinstance(source, LoRAFile)
        super().__init__(source.native() if is_file else source.state_dict("native"))
        self.record = dict(record)
        self.metadata = dict(source.lasting_metadata if is_file else source.metadata)
        self.notes = source.notes
        if is_file:
            self.file = source
        else:
            self.vector = source

    @cached_property
    def file(self) -> LoRAFile:
        return LoRAFile.of(self, self.metadata, known_finite=True)

    @cached_property
    def vector(self) -> LoRAVector:
        vector = self.file.vector()
        return LoRAVector(vector.modules, vector.diffs, self.metadata, vector.notes)

    def saying(self, entries: Mapping[str, str]) -> "LoRATensors":
        """The same, whose vector has these entries of metadata too."""
        other = copy.copy(self)
        other.metadata = {**self.metadata, **entries}
        vars(other).pop("vector", None)
        return other


def file_of(lora: Mapping[str, Tensor]) -> LoRAFile:
    """Any LORA_MODEL as a file, core's plain dicts included."""
    return lora.file if isinstance(lora, LoRATensors) else LoRAFile.of(lora)


def to_vector(lora: Mapping[str, Tensor]) -> LoRAVector:
    """The vector of any LORA_MODEL; ValueError for one that is none."""
    return lora.vector if isinstance(lora, LoRATensors) else file_of(lora).vector()


def record_of(lora: Mapping[str, Tensor]) -> dict[str, str]:
    """The record of a LORA_MODEL; none for core's plain dicts."""
    return getattr(lora, "record", {})


def history(lora: Mapping[str, Tensor]) -> dict[str, str]:
    """How a LORA_MODEL was made: its file's own record where it has one."""
    metadata = getattr(lora, "metadata", {})
    return {key: metadata[key] for key in (EXPRESSION, PARENTS) if key in metadata} or record_of(lora)


def find_lora(name: str) -> str:
    """The file of the loras folders that a user means by its path or its bare name, `.safetensors` left out or not.

    LookupError for a name that fits no file, ValueError for a bare name that fits several.
    """
    wanted = PurePosixPath(name.replace("\\", "/"))
    paths = {file: PurePosixPath(file.replace("\\", "/")) for file in lora_files()}
    whole = [file for file, path in paths.items() if wanted in (path, _without_suffix(path))]
    bare = [file for file, path in paths.items() if str(wanted) in (path.name, _without_suffix(path).name)]
    fitting = whole or bare
    if len(fitting) > 1:
        raise ValueError(f"the name {quoted(name)} fits {listed(fitting, 8)} of models/loras; write one of these paths")
    if not fitting:
        stems = {_without_suffix(path).name.lower(): file for file, path in paths.items()}
        close = difflib.get_close_matches(_without_suffix(wanted).name.lower(), stems)
        similar = ", ".join(stems[stem] for stem in close)
        raise LookupError(f"models/loras has {similar}" if similar else "models/loras has no name like it")
    return fitting[0]


def _without_suffix(path: PurePosixPath) -> PurePosixPath:
    return path.with_suffix("") if path.suffix == ".safetensors" else path


def lora_path(name: str) -> str:
    """A file of the loras folders."""
    return model_path(name, "loras")
