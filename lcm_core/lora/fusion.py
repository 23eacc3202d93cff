"""Fused weights and their parts: a q, k and v that one weight holds one after another, split and joined exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..text import listed, shortened
from .lowrank import Factors


def part_rows(name: str, count: int, rows: int, columns: int) -> list[int]:
    """The rows of each of `count` parts of a fused weight (rows, columns), whose first is a q of `columns` rows.

    Two are a k and a v, three a q, k and v (the last two alike, fewer than q's where heads share them), four those, all
    alike, and an MLP's. ValueError, naming the module, where the sizes can't be so.
    """
    sizes = {
        1: [rows],
        2: [rows // 2] * 2,
        3: [columns, *[(rows - columns) // 2] * 2],
        4: [columns] * 3 + [rows - 3 * columns],
    }[count]
    if sum(sizes) != rows or min(sizes) < 1:
        raise ValueError(
            f"{shortened(name)} is {rows} × {columns}, which can't be the {count} parts that its name says; "
            "the file is damaged, or for another network: get it again"
        )
    return sizes


def split(name: str, factors: Factors, count: int) -> list[Factors]:
    """The parts of a fused Delta W, all with its `down`."""
    if count == 1:
        return [factors]
    sizes = part_rows(name, count, len(factors.up), factors.down[0].numel())
    return [replace(factors, up=up) for up in factors.up.split(sizes)]


def fuse(name: str, parts: Sequence[Factors]) -> Factors:
    """One Delta W of all parts' rows: of their rank if they share `down` and scale, else of the ranks' sum.

    ValueError, naming the module, for parts that no fused weight has.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    rows, columns = [len(part.up) for part in parts], first.down[0].numel()
    if (
        any(part.shape[1:] != first.shape[1:] for part in parts)
        or part_rows(name, len(parts), sum(rows), columns) != rows
    ):
        raise ValueError(
            f"the parts of {shortened(name)} are {listed((str(part.shape) for part in parts), 4)}, which no network "
            "has in one weight; save as peft, or get the file again"
        )
    scale = first.alpha / first.rank
    if all(part.alpha / part.rank == scale and same(part.down, first.down) for part in parts[1:]):
        return replace(first, up=torch.cat([part.up.to(first.up.device) for part in parts]))
    dtype = max((part.dtype for part in parts), key=lambda dtype: dtype.itemsize)
    downs, ups = zip(*(part.matrices(dtype) for part in parts), strict=True)
    return Factors.of_matrices(
        torch.cat([down.to(first.down.device) for down in downs]),
        torch.block_diag(*(up.to(first.up.device) for up in ups)),
        (sum(map(len, ups)), *first.shape[1:]),
    )


def same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b))


def unswapped(factors: Factors, swapped: bool) -> Factors:
    """Factors whose rows' halves are exchanged if the name says so and the weight has two rows a column."""
    if not swapped or len(factors.up) != 2 * factors.down[0].numel():
        return factors
    return replace(factors, up=factors.up.roll(len(factors.up) // 2, 0))


def unswapped_diff(diff: Tensor, factors: Factors | None, swapped: bool) -> Tensor:
    """The same of a bias (out,), whose weight's `factors` tell the columns; without them it has two rows a column."""
    if not swapped or (factors is not None and len(diff) != 2 * factors.down[0].numel()):
        return diff
    return diff.roll(len(diff) // 2, 0)
