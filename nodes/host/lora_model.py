"""What LORA_MODEL, the host's dict of tensors, carries between our nodes: its file or vector, and its record."""

import copy
from collections.abc import Mapping
from functools import cached_property

from torch import Tensor

from ...lcm_core.lora import LoRAVector
from ...lcm_core.lora.file import LoRAFile
from ...lcm_core.lora.record import EXPRESSION, PARENTS


class LoRATensors(dict[str, Tensor]):
    """A LORA_MODEL, the host's dict of tensors, of a file or a vector, which is parsed and checked once for all nodes.

    record: what vectors that are made of it say of it (`lcm_core.lora.record`). name: that of its file among the
    host's LoRAs; None for what was made in a graph.
    """

    def __init__(self, source: LoRAFile | LoRAVector, record: Mapping[str, str], name: str | None = None) -> None:
        self.name = name
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
