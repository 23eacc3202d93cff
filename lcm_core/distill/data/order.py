"""In which order examples come: an epoch of batches after another, known from the step's number alone."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Order:
    """Batches of the numbers of examples, each from one of `buckets`: an epoch has every number, shuffled by `seed`.

    A batch that would be short takes more from its own bucket. ValueError for a batch below 1.
    """

    buckets: tuple[Numbers, ...]
    batch: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch {self.batch} must be at least 1")

    def __call__(self, step: int) -> tuple[int, Numbers]:
        """(the epoch, the numbers of the step's batch)."""
        epoch, place = divmod(step, sum(math.ceil(len(bucket) / self.batch) for bucket in self.buckets))
        return epoch, epoch_batches(self, epoch)[place]


def buckets_of(kinds: Iterable[Hashable]) -> tuple[Numbers, ...]:
    """The numbers of the examples of each kind, in the order in which the kinds first come."""
    known: dict[Hashable, int] = {}
    kind = np.fromiter((known.setdefault(kind, len(known)) for kind in kinds), np.int64)
    return tuple(np.flatnonzero(kind == k) for k in range(len(known)))


@lru_cache(maxsize=2)
def epoch_batches(order: Order, epoch: int) -> Numbers:
    """(batches, batch) numbers: every bucket's, shuffled; its last batch repeats its first numbers if it is short."""
    random = np.random.default_rng([order.seed, epoch])
    rows = []
    for bucket in order.buckets:
        shuffled = random.permutation(bucket)
        rows.append(np.resize(shuffled, (math.ceil(len(bucket) / order.batch), order.batch)))
    places = list(range(sum(map(len, rows))))
    random.shuffle(places)
    return np.concatenate(rows)[places]
