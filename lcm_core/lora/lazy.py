"""A LoRA file as a vector whose modules are read when they are asked for, so that one is in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from threading import Lock

from torch import Tensor

from ..streaming import open_tensors
from .convert import check_vector, module_parts
from .file import LoRAFile, check_finite, computable, named
from .kinds import kinds_of
from .lowrank import Factors
from .mapping import Lazy
from .module import Module
from .vector import LoRAVector


@contextmanager
def open_vector(path: str | os.PathLike[str], rank: int | None = None) -> Iterator[LoRAVector]:
    """`LoRAVector.load` of a file that stays open: each access to a module or diff reads it anew.

    Errors about names and shapes come at once, those about values with the access, which threads may share.
    """
    with open_tensors(path) as opened:
        with named(path):
            file = LoRAFile.of_header(path, opened)
            check_vector(file.modules, rank)
            metadata, convolutions = file.lasting_metadata, file.projects_by_convolution

        def parts_of(module: Module) -> tuple[dict[str, Factors], dict[str, Tensor]]:
            try:
                read = {role: opened.read(module.keys[role]) for role, t in module.tensors.items() if t.is_meta}
            except OSError as error:
                reason = error.strerror or error
                raise ValueError(f"{path} can't be read: {reason}; see to that and try again") from error
            with named(path):
                tensors = {role: computable(module.keys[role], role, tensor) for role, tensor in read.items()}
                whole = replace(module, tensors={**module.tensors, **tensors})
                check_finite(whole)
                return module_parts(whole, rank, convolutions)

        cached, one_at_a_time = lru_cache(maxsize=1)(lambda index: parts_of(file.modules[index])), Lock()

        def last(index: int) -> tuple[dict[str, Factors], dict[str, Tensor]]:
            with one_at_a_time:
                return cached(index)

        names: dict[str, int] = {}
        diffs: dict[str, int] = {}
        for index, module in enumerate(file.modules):
            for kind in kinds_of(module):
                flat_weight = kind.parameter == "weight" and "diff" in kind.roles and module.tensors["diff"].ndim < 2
                if kind.parameter == "weight" and not flat_weight:
                    names |= dict.fromkeys(module.spelling.parts, index)
                else:
                    diffs |= {f"{part}.{kind.parameter}": index for part in module.spelling.parts}
        yield LoRAVector(
            Lazy({name: (name, index) for name, index in names.items()}, lambda at: last(at[1])[0][at[0]]),
            Lazy({name: (name, index) for name, index in diffs.items()}, lambda at: last(at[1])[1][at[0]]),
            metadata,
            file.notes,
        )
