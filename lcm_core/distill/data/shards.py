"""Shards: safetensors files of latents and conditions, of which a batch reads its own rows alone.

What is alike in shape and dtype lies in one tensor, a row a sample: headers are short, and the place of a row is known.
Each row has a checksum. Nothing stays open or mapped between two batches: a training holds some bytes a sample,
whatever the size of the files, and a disk that fails is an error, where it would end a process that maps a file.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...files import bytes_of, write_lora
from ...streaming import TensorFile, open_tensors
from ..losses import Cond

KEY = "lcm_lora.shard"
Layout: TypeAlias = tuple[torch.dtype, tuple[int, ...]]  # of a row


@dataclass(frozen=True)
class Made:
    """What a shard has of a sample: latents (V, …), one for each of its V views, and conditions without batch axis."""

    latents: Tensor
    cond: Cond


@dataclass(frozen=True)
class Kind:
    """Samples that one batch can have: how many views a sample has, and how a view and the conditions are laid out."""

    views: int
    latents: Layout
    cond: tuple[Layout, ...]


@dataclass(frozen=True, eq=False)
class Group:
    """The samples of one kind in a shard: where each tensor begins, and the rows' checksums (n, V + conditions)."""

    begins: tuple[int, ...]
    checksums: NDArray[np.uint32]


def write_shard(path: Path, made: Sequence[Made], about: str) -> None:
    """Write what was made of samples, in their order, unless `path` is there, with `about` in its metadata.

    Errors are those of `write_lora`.
    """
    groups: dict[Kind, list[int]] = defaultdict(list)
    for i, each in enumerate(made):
        z = each.latents
        kind = Kind(len(z), (z.dtype, tuple(z.shape[1:])), tuple((c.dtype, tuple(c.shape)) for c in each.cond))
        groups[kind].append(i)
    tensors = {}
    for g, (kind, places) in enumerate(groups.items()):
        sums = [[checksum(t) for t in (*made[i].latents, *made[i].cond)] for i in places]
        tensors[f"{g}.place"] = torch.tensor(places)
        tensors[f"{g}.checksum"] = torch.tensor(sums)
        tensors[f"{g}.latents"] = torch.stack([made[i].latents.cpu() for i in places])
        for j in range(len(kind.cond)):
            tensors[f"{g}.cond{j}"] = torch.stack([made[i].cond[j].cpu() for i in places])
    try:
        write_lora(path, tensors, {KEY: about}, replace=False)
    except FileExistsError:
        return  # another process made it meanwhile


def checksum(tensor: Tensor) -> int:
    return zlib.crc32(bytes_of(tensor))


@dataclass(frozen=True, eq=False)
class Shards:
    """The samples of files of `write_shard`, one file's after another's, and where each of them is.

    kinds: those that there are; kind, file, row: (N,), of each sample the number of its kind and of its file, and its
    row there. groups: (file, kind) -> where their tensors are.
    """

    files: Sequence[Path]
    kinds: Sequence[Kind]
    kind: NDArray[np.int32]
    file: NDArray[np.int32]
    row: NDArray[np.int32]
    groups: dict[tuple[int, int], Group]

    def __len__(self) -> int:
        return len(self.kind)

    def read(self, numbers: Iterable[int], views: Iterable[int]) -> tuple[Tensor, Cond]:
        """(latents (B, …), conditions (B, …)) of samples of one kind; of each the view that `views` says, modulo V.

        ValueError for a file that is damaged, OSError for one that can't be read.
        """
        numbers = [int(i) for i in numbers]
        kind = self.kinds[self.kind[numbers[0]]]
        batch = [torch.empty(len(numbers), *shape, dtype=dtype) for dtype, shape in (kind.latents, *kind.cond)]
        for place, (i, view) in enumerate(zip(numbers, views, strict=True)):
            path, row = self.files[self.file[i]], int(self.row[i])
            group = self.groups[int(self.file[i]), int(self.kind[i])]
            rows = [row * kind.views + view % kind.views, *[row] * len(kind.cond)]
            sums = group.checksums[row][[view % kind.views, *range(kind.views, kind.views + len(kind.cond))]]
            with path.open("rb", buffering=0) as file:
                for tensor, begin, at, known in zip(batch, group.begins, rows, sums, strict=True):
                    target = bytes_of(tensor[place])
                    file.seek(begin + at * len(target))
                    if file.readinto(target) != len(target) or zlib.crc32(target) != known:
                        raise ValueError(f"{path} is damaged (a row's checksum is another); delete it to make it again")
        return batch[0], tuple(batch[1:])


def open_shards(files: Sequence[Path]) -> Shards:
    """The shards of files of `write_shard`, of which the headers and the places are read.

    ValueError for another kind of file, and for one that is damaged.
    """
    kinds: dict[Kind, int] = {}
    groups: dict[tuple[int, int], Group] = {}
    columns: list[NDArray[np.int32]] = []
    for number, path in enumerate(files):
        with open_tensors(path) as file:
            if KEY not in file.metadata:
                raise ValueError(f"{path} is no shard of latents; name another folder for the cache, or delete it")
            names = [key.partition(".")[0] for key in file.shapes if key.endswith(".place")]
            places = {name: file.read(f"{name}.place").numpy() for name in names}
            table = np.empty((3, sum(map(len, places.values()))), np.int32)
            for name, at in places.items():
                kind, group = group_of(file, name)
                k = kinds.setdefault(kind, len(kinds))
                groups[number, k] = group
                table[:, at] = np.full(len(at), k), np.full(len(at), number), np.arange(len(at))
            columns.append(table)
    kind, of_file, row = np.concatenate(columns, axis=1)
    return Shards(files, list(kinds), kind, of_file, row, groups)


def group_of(file: TensorFile, name: str) -> tuple[Kind, Group]:
    (dtype, shape), prefix = file.shapes[f"{name}.latents"], f"{name}.cond"
    keys = [f"{prefix}{j}" for j in range(sum(key.startswith(prefix) for key in file.shapes))]
    cond = tuple((dtype, shape[1:]) for dtype, shape in (file.shapes[key] for key in keys))
    begins = tuple(file.places[key][0] for key in (f"{name}.latents", *keys))
    return Kind(shape[1], (dtype, shape[2:]), cond), Group(
        begins, file.read(f"{name}.checksum").numpy().astype(np.uint32)
    )
