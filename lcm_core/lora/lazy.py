"""A LoRA file as a vector whose modules are read when they are asked for, so that one is in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Generic, TypeVar

from torch import Tensor

from ..streaming import open_tensors
from .convert import check_vector, module_parts
from .file import LoRAFile, check_finite, computable, named
from .kinds import kinds_of
from .lowrank import Factors
from .module import Module
from .vector import LoRAVector

T = TypeVar("T", Factors, Tensor)


@dataclass(frozen=True)
class _Read(Mapping[str, T], Generic[T]):
    """Name of a part -> the part, out of what `read` makes of the module that holds it."""

    modules: Mapping[str, Module]
    read: Callable[[Module], Mapping[str, T]]

    def __getitem__(self, name: str) -> T:
        return self.read(self.modules[name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)


@contextmanager
def open_vector(path: str | os.PathLike[str], rank: int | None = None) -> Iterator[LoRAVector]:
    """`LoRAVector.load` of a file that stays open: each access to a module or diff reads it anew.

    Errors about names and shapes come at once, those about values with the access.
    """
    with open_tensors(path) as opened:
        with named(path):
            file = LoRAFile.of_header(path, opened)
            check_vector(file.modules, rank)
            metadata, convolutions = file.lasting_metadata, file.projects_by_convolution

        def parts_of(module: Module) -> tuple[dict[str, Factors], dict[str, Tensor]]:
            tensors = {role: computable(key, role, opened.read(key)) for role, key in module.keys.items()}
            whole = replace(module, tensors=tensors)
            with named(path):
                check_finite(whole)
                return module_parts(whole, rank, convolutions)

        last = lru_cache(maxsize=1)(lambda index: parts_of(file.modules[index]))
        index_of = {module.name: i for i, module in enumerate(file.modules)}
        names: dict[str, Module] = {}
        diffs: dict[str, Module] = {}
        for module in file.modules:
            for kind in kinds_of(module):
                flat_weight = kind.parameter == "weight" and "diff" in kind.roles and module.tensors["diff"].ndim < 2
                if kind.parameter == "weight" and not flat_weight:
                    names |= dict.fromkeys(module.spelling.parts, module)
                else:
                    diffs |= {f"{part}.{kind.parameter}": module for part in module.spelling.parts}
        yield LoRAVector(
            _Read(names, lambda module: last(index_of[module.name])[0]),
            _Read(diffs, lambda module: last(index_of[module.name])[1]),
            metadata,
            file.notes,
        )
