"""Examples in memory or in shards on the disk, which give a training its batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ...text import listed
from ..identity import fingerprint
from ..losses import Batch, Cond
from .order import Numbers, Order, buckets_of
from .shards import Shards

EMPTY_ROWS = 1  # the stream of random numbers that says which prompts are empty; the order has none


@dataclass(frozen=True, eq=False)
class Examples:
    """Latents (C, H, W) each with its conditioning, tuples of tensors, and the empty prompt's `uncond` for all.

    A tensor of `cond` or `uncond` has no batch axis. `examples(step)` is the batch of a step, as `distill` wants it:
    every example once in an epoch, in an order that `seed` gives, and only examples of one shape in a batch; a batch
    that would be short takes more from its own shape. All are in memory: see `StoredExamples` for many. ValueError for
    no latents, a cond too many or too few, and values that are not finite.
    """

    latents: Sequence[Tensor]
    cond: Sequence[Cond]
    uncond: Cond
    batch: int
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.latents) == 0:
            raise ValueError("there are no latents; give at least one, from pictures or from the teacher")
        if len(self.latents) != len(self.cond):
            raise ValueError(f"{len(self.latents)} latents, but {len(self.cond)} captions; give one to each latent")
        bad = [i for i, z in enumerate(self.latents) if not z.isfinite().all()]
        if bad:
            raise ValueError(f"latents {listed(map(str, bad))} have values that are not finite; encode them in float32")
        self.order  # noqa: B018

    @property
    def identity(self) -> dict[str, str]:
        """What a state must share to go on with these examples, for `distill`."""
        prompts = {f"{i}.{j}": c for i, cond in enumerate(self.cond) for j, c in enumerate(cond)}
        return {
            "batch size": str(self.batch),
            "order's seed": str(self.seed),
            "latents": fingerprint({str(i): z for i, z in enumerate(self.latents)}),
            "prompts": fingerprint(prompts),
            "empty prompt": fingerprint({str(j): c for j, c in enumerate(self.uncond)}),
        }

    @cached_property
    def order(self) -> Order:
        kinds = ((z.shape, tuple(c.shape for c in cond)) for z, cond in zip(self.latents, self.cond, strict=True))
        return Order(buckets_of(kinds), self.batch, self.seed)

    def __call__(self, step: int) -> Batch:
        _, chosen = self.order(step)
        z = torch.stack([self.latents[i] for i in chosen])
        cond = tuple(torch.stack(column) for column in zip(*(self.cond[i] for i in chosen), strict=True))
        return z, cond, repeated(self.uncond, len(chosen))


@dataclass(frozen=True, eq=False)
class StoredExamples:
    """The examples of shards on the disk: a batch is read when its step comes, the next one meanwhile.

    uncond: the empty prompt's conditions for latents of a shape, such as (C, H, W), or None where no step asks for
        them. Order and batches are as of `Examples`; of pictures with several views an epoch has one each, the next
        epoch the next. empty_share: of all prompts so many, drawn by `seed` and step, are the empty one.

    ValueError for an empty share outside [0, 1), or above 0 where the empty prompt's conditions are of another shape.
    """

    shards: Shards
    batch: int
    seed: int = 0
    uncond: Callable[[tuple[int, ...]], Cond] | None = None
    guided: bool = True
    empty_share: float = 0.0
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        check_share(self.empty_share)
        self.order  # noqa: B018

    def __len__(self) -> int:
        return len(self.shards)

    @cached_property
    def order(self) -> Order:
        return Order(buckets_of(self.shards.kind.tolist()), self.batch, self.seed)

    def __call__(self, step: int) -> Batch:
        z, cond = self._ahead(step)
        z, cond = z.to(self.device), on(cond, self.device)
        empty = on(self._empty(tuple(z.shape[1:])), self.device)
        if self.empty_share:
            cond = self._emptied(cond, empty, step)
        return z, cond, repeated(empty, len(z)) if self.guided else ()

    def these(self, chosen: Numbers) -> Batch:
        """The batch of these numbers, of one shape: the first view of each, without a share of empty prompts."""
        z, cond = self.shards.read(chosen, np.zeros_like(chosen))
        empty = on(self._empty(tuple(z.shape[1:])), self.device)
        return z.to(self.device), on(cond, self.device), repeated(empty, len(z)) if self.guided else ()

    def read(self, step: int) -> tuple[Tensor, Cond]:
        """The latents and conditions of a step's batch, from the disk."""
        epoch, chosen = self.order(step)
        return self.shards.read(chosen, epoch + chosen)

    @cached_property
    def _ahead(self) -> Callable[[int], tuple[Tensor, Cond]]:
        return Ahead(self.read)

    @cached_property
    def _empties(self) -> dict[tuple[int, ...], Cond]:
        return {}

    def _empty(self, shape: tuple[int, ...]) -> Cond:
        if self.uncond is None:
            return ()
        if shape not in self._empties:
            self._empties[shape] = self.uncond(shape)
        return self._empties[shape]

    def _emptied(self, cond: Cond, empty: Cond, step: int) -> Cond:
        shapes = [[tuple(c.shape) for c in each] for each in ([c[0] for c in cond], empty)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"conditions of shapes {shapes[0]}, but {shapes[1]} of the empty prompt, so one batch can't have both; "
                "set empty_share to 0 for this model"
            )
        drawn = np.random.default_rng([self.seed, step, EMPTY_ROWS]).random(len(cond[0])) < self.empty_share
        rows = torch.from_numpy(drawn).to(self.device)
        return tuple(
            torch.where(rows.reshape(-1, *[1] * e.ndim), e.to(c.dtype), c) for c, e in zip(cond, empty, strict=True)
        )


class Ahead:
    """What `read` gives for a step, which is read in a thread while the step before is made."""

    def __init__(self, read: Callable[[int], tuple[Tensor, Cond]]):
        self.read = read
        self.pool = ThreadPoolExecutor(1, "lcm-lora-data")
        self.begun: tuple[int, Future[tuple[Tensor, Cond]]] | None = None

    def __call__(self, step: int) -> tuple[Tensor, Cond]:
        known, future = self.begun or (None, None)
        result = future.result() if future and known == step else self.read(step)
        self.begun = step + 1, self.pool.submit(self.read, step + 1)
        return result


def check_share(empty_share: float) -> None:
    if not 0 <= empty_share < 1:
        raise ValueError(f"empty_share {empty_share:g} must be in [0, 1); 0.1 makes every tenth prompt empty")


def repeated(cond: Cond, batch: int) -> Cond:
    return tuple(c.expand(batch, *c.shape) for c in cond)


def on(cond: Cond, device: torch.device | str) -> Cond:
    return tuple(c.to(device) for c in cond)
