"""A LoRA file, parsed and checked once: as a vector, as ComfyUI's own tensors, or as the sizes that it fits."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..files import read_lora, with_adapter_config
from ..streaming import TensorFile, open_tensors
from ..text import listed, shortened
from .architecture import projects_by_convolution
from .control import control_keys, reshaped
from .convert import check_vector, read_modules
from .kinds import Size, native_suffix, normal, role_of, sizes_of, split_key
from .metadata import family_names, of_file
from .module import Module, finite
from .names import Spelling, flat, read_names
from .names.table import canonical_paths, families_with, is_native
from .names.writing import spell
from .peft_config import ALPHA_IS_RANK, adapter_config, alpha_of
from .vector import LoRAVector

# Tensors that are no factors: one number, or a shape.
NUMBERS = ("alpha", "reshape_weight")
# (path, bytes, time of change) of files whose values were looked at.
_FINITE: set[tuple[str, int, int]] = set()


@dataclass(frozen=True)
class LoRAFile:
    """modules:  what the file adapts, as it is stored; values are checked to be finite numbers
    metadata: its text entries, with PEFT's adapter_config as diffusers keeps it
    notes:    what reading it had to assume or leave out
    """

    modules: tuple[Module, ...]
    metadata: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, *, known_finite: bool = False
    ) -> LoRAFile:
        """Tensors under kohya, PEFT, diffusers or ComfyUI names. Tensors on the meta device stand for their shapes.

        known_finite: that the values were looked at already.

        Raises ValueError for unknown keys, a module in two dialects, values that are NaN, infinite or no floating-point
        numbers, and a PEFT adapter whose initialisation changed the base model too.
        """
        metadata = dict(metadata or {})
        config = adapter_config(metadata)
        control = control_keys(state_dict)
        modules = [
            Module(spelling, keys, {role: computable(key, role, state_dict[key]) for role, key in keys.items()}, config)
            for spelling, keys in _grouped({key: control.get(key, key) for key in state_dict}, family_names(metadata))
        ]
        if control:
            modules = list(map(reshaped, modules))
        if not known_finite:
            for module in modules:
                check_finite(module)
        rest = [key for key in state_dict if key not in control]
        notes = _notes(rest, modules, metadata | ALPHA_IS_RANK if control else metadata)
        return cls(tuple(modules), metadata, notes)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> LoRAFile:
        """Reads a safetensors file; errors are those of `read_lora` and `of`, and name the file.

        A file that is read again, by its path, size and time, is known to be finite.
        """
        stat = os.stat(path)
        stamp = (os.fspath(path), stat.st_size, stat.st_mtime_ns)
        state_dict, metadata = read_lora(path)
        with named(path):
            file = cls.of(state_dict, metadata, known_finite=stamp in _FINITE)
        _FINITE.add(stamp)
        return file

    @classmethod
    def scan(cls, path: str | os.PathLike[str]) -> LoRAFile:
        """Reads the header and the alphas alone; factors are on the meta device. Errors are those of `read`."""
        with open_tensors(path) as opened, named(path):
            return cls.of_header(path, opened)

    @classmethod
    def of_header(cls, path: str | os.PathLike[str], opened: TensorFile) -> LoRAFile:
        """The same of an open file at `path`."""
        state_dict = {
            key: opened.read(key) if role_of(key) in NUMBERS else torch.empty(shape, dtype=dtype, device="meta")
            for key, (dtype, shape) in opened.shapes.items()
        }
        return cls.of(state_dict, with_adapter_config(path, opened.metadata))

    @cached_property
    def normal_modules(self) -> tuple[Module, ...]:
        """The modules as ComfyUI reads them as they are meant; errors as of `kinds.normal`."""
        modules = tuple(map(normal, self.modules))
        for before, module in zip(self.modules, modules, strict=True):
            made = [tensor for role, tensor in module.tensors.items() if tensor is not before.tensors.get(role)]
            if not all(finite(tensor) for tensor in made):
                raise before.overflow()
        return modules

    @cached_property
    def sizes(self) -> dict[str, Size]:
        """Canonical name + `.weight` or `.bias` -> the size that it must have in the model."""
        return {name: size for module in self.modules for name, size in sizes_of(module).items()}

    @cached_property
    def projects_by_convolution(self) -> bool:
        """As `architecture.projects_by_convolution` has it."""
        return projects_by_convolution(self.sizes, self.metadata)

    @cached_property
    def lasting_metadata(self) -> dict[str, str]:
        """What of the metadata stays true of a vector, and the families of networks that the file can be for."""
        return of_file(self.metadata, families_with((m.spelling.dotted for m in self.modules), self.sizes))

    def vector(self, rank: int | None = None) -> LoRAVector:
        """The file as a vector; rank and errors are those of `LoRAVector.from_state_dict`."""
        check_vector(self.modules, rank)
        modules, diffs = read_modules(self.modules, rank, self.projects_by_convolution)
        return LoRAVector(modules, diffs, self.lasting_metadata, self.notes)

    def native(self) -> dict[str, Tensor]:
        """The file's tensors under the names of ComfyUI's `load_lora`, each adapter as it is, vector or not.

        The alphas of PEFT's config are there, which this dict alone must carry. Errors as of `kinds.normal`.
        """
        names = _native_names(self.normal_modules)
        return {
            names[module.name] + native_suffix(role): tensor
            for module in self.normal_modules
            for role, tensor in module.tensors.items()
        }


@contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """A ValueError of what is done with a file names it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _grouped(keys: Mapping[str, str], families: Collection[str]) -> list[tuple[Spelling, dict[str, str]]]:
    """(what a module's name stands for, role -> key) of each; ValueError for unknown keys and a module twice.

    keys: each as the file has it -> as it is read. families: what the file says that it is for.
    """
    unknown = [key for key, read in keys.items() if split_key(read) is None]
    if unknown:
        raise ValueError(f"no LoRA weights that are known: {listed(unknown)}; use a file with LoRA weights only")
    spellings = read_names(dict.fromkeys((split_key(read) or ("", ""))[0] for read in keys.values()), families)
    modules: dict[str, dict[str, str]] = {}
    taken: dict[str, tuple[str, str]] = {}
    for key, read in keys.items():
        module, role = split_key(read) or ("", "")
        if role == "stray":
            continue
        roles = modules.setdefault(module, {})
        for part in spellings[module].parts:
            other, first_key = taken.setdefault(flat(part), (module, key))
            if other != module or role in roles:
                raise ValueError(
                    f"{shortened(roles.get(role, first_key))} and {shortened(key)} are the same module "
                    f"{shortened(part)} twice; save each LoRA in a file of its own and add them as vectors"
                )
        roles[role] = key
    return [(spellings[module], roles) for module, roles in modules.items()]


def computable(key: str, role: str, tensor: Tensor) -> Tensor:
    """Real numbers in a dtype that can be computed with."""
    tensor = tensor.detach()
    if role in NUMBERS:
        return tensor
    if not tensor.is_floating_point() or tensor.numel() == 0:
        raise ValueError(
            f"{shortened(key)} is {tuple(tensor.shape)} of {tensor.dtype}; a LoRA's weights are floating-point "
            "numbers, at least one. The file is damaged or quantized, get it again"
        )
    if tensor.dtype.itemsize == 1 and not tensor.is_meta:
        try:
            tensor = tensor.to(torch.bfloat16)
        except NotImplementedError as error:
            raise ValueError(
                f"{shortened(key)} is of {tensor.dtype}, which can't be converted; get a float16 file"
            ) from error
    return tensor


def check_finite(module: Module) -> None:
    for role, tensor in module.tensors.items():
        if role not in NUMBERS and not finite(tensor):
            raise ValueError(
                f"{shortened(module.keys[role])} has NaN or infinite values; the file is damaged, get it again"
            )


def _notes(keys: Iterable[str], modules: Iterable[Module], metadata: Mapping[str, str]) -> tuple[str, ...]:
    stray = [key for key in keys if role_of(key) == "stray"]
    left_out = f"{len(stray)} tensors are no LoRA weights and left out ({listed(stray, 2)})" if stray else None
    stated = ALPHA_IS_RANK.items() <= metadata.items()
    open_ones = [m.keys["down"].partition(".lora_A")[0] for m in modules if _leaves_alpha_open(m) and not stated]
    assumed = (
        f"no alpha in the file for {len(open_ones)} modules ({listed(open_ones, 1)}); "
        "took alpha = rank. If it was trained with another, multiply the strength by alpha/rank, or put the file, as "
        "adapter_model.safetensors, into a folder with its adapter_config.json"
    )
    return tuple(filter(None, (assumed if open_ones else None, left_out)))


def _leaves_alpha_open(module: Module) -> bool:
    """Whether a module has PEFT's names, which have none for alpha, and neither the file nor its config an alpha."""
    down = module.keys.get("down", "")
    return ".lora_A" in down and "alpha" not in module.keys and alpha_of(module.spelling.dotted, module.config) is None


def _native_names(modules: Iterable[Module]) -> dict[str, str]:
    """Canonical name -> name in the host: a transformer's modules keep the file's spelling, fused or not."""
    paths = {module.name: module.spelling.dotted.removeprefix("transformer.") for module in modules}
    others = [name for name, path in paths.items() if not (canonical_paths(path) or is_native(path))]
    names = spell(others, "native")
    for module in modules:
        if module.name not in names:
            path = paths[module.name]
            names[module.name] = f"diffusion_model.{path}" if is_native(path) else module.spelling.dotted
    return names
