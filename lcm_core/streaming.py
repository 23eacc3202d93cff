"""safetensors files tensor by tensor: read without keeping what was read, written before all shapes are known."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch import Tensor

from .atomic import syncing, write_whole
from .files import (
    DTYPES,
    METADATA,
    Entry,
    bytes_of,
    check_new_file,
    entry_of,
    open_regular,
    open_safetensors,
    safetensors_header,
)

# Bytes of a header's entry beside the tensor's name: its dtype, four numbers of its shape and two offsets at most.
_ENTRY = 120


@dataclass(frozen=True)
class TensorFile:
    """An open safetensors file. shapes: key -> (dtype, shape). metadata: its text entries.

    places: key -> its first byte in the file and the one after its last.
    """

    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    metadata: Mapping[str, str]
    places: Mapping[str, tuple[int, int]]
    file: BinaryIO

    def read(self, key: str) -> Tensor:
        """A tensor of the file, in memory of its own on the CPU."""
        dtype, shape = self.shapes[key]
        begin, end = self.places[key]
        content = torch.empty(end - begin, dtype=torch.uint8)
        self.file.seek(begin)
        self.file.readinto(content.numpy().data)  # type: ignore[attr-defined]
        return content.view(dtype).reshape(shape)


@contextmanager
def open_tensors(path: str | os.PathLike[str]) -> Iterator[TensorFile]:
    """A safetensors file opened to read tensors one by one; unlike a mapped one it takes no memory for those read.

    Errors are those of `open_safetensors`, and ValueError for a dtype that can't be computed with.
    """
    with open_safetensors(path):
        pass  # checked as a whole, that the offsets below are those of a sound file
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        metadata = header.pop(METADATA, {})
        unknown = [key for key, entry in header.items() if entry["dtype"] not in DTYPES]
        if unknown:
            code = header[unknown[0]]["dtype"]
            raise ValueError(f"{path}: {unknown[0]} is of {code}, which can't be converted; get a float16 file")
        shapes = {key: (DTYPES[entry["dtype"]], tuple(entry["shape"])) for key, entry in header.items()}
        ends = {key: (entry["data_offsets"][0], entry["data_offsets"][1]) for key, entry in header.items()}
        places = {key: (8 + length + begin, 8 + length + end) for key, (begin, end) in ends.items()}
        yield TensorFile(shapes, metadata, places, file)


def write_streamed(
    path: str | os.PathLike[str],
    keys: Iterable[str],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str] | None = None,
    replace: bool = True,
) -> None:
    """Writes a safetensors file of tensors that are made while it is written, whole or not at all.

    keys: all that `tensors` may give. Those of no dimension, such as alphas, are kept and written at the end, into room
    before the others: the file is aligned as its other tensors, all of one dtype, are. Errors are those of `write_lora`
    and of `tensors`.
    """
    path = check_new_file(path)
    keys = list(keys)
    longest = len(safetensors_header({}, metadata)) + sum(len(json.dumps(key)) + _ENTRY for key in keys)
    start = (8 + longest + 7) // 8 * 8 + 8 * len(keys)

    def write(file: BinaryIO) -> None:
        numbers: dict[str, Tensor] = {}
        entries: dict[str, Entry] = {}
        file.seek(start)
        with syncing(file) as sync:
            for key, tensor in tensors:
                if tensor.ndim == 0:
                    numbers[key] = tensor
                else:
                    entries[key] = entry_of(key, tensor, file.tell())
                    file.write(bytes_of(tensor))
                    sync()
        begin = start - sum(number.nbytes for number in numbers.values())
        file.seek(begin)
        for key, number in numbers.items():
            entries[key] = entry_of(key, number, file.tell())
            file.write(bytes_of(number))
        for entry in entries.values():
            entry["data_offsets"] = [place - begin for place in entry["data_offsets"]]
        file.seek(0)
        file.write((begin - 8).to_bytes(8, "little") + safetensors_header(entries, metadata).ljust(begin - 8))

    write_whole(path, write, replace)
