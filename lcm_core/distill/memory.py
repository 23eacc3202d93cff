"""What a training will need of its device's memory, from a step's work on one and on two rows of a batch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..consistency import Prediction
from ..schedule import Schedule
from .batch_loss import BatchLoss, Trainable, checked, cut
from .config import DistillConfig
from .losses import Batch, Model
from .optimizers import OPTIMIZERS
from .randomness import draw_step


@dataclass(frozen=True)
class Memory:
    """Bytes, of each kind: `frozen` weights, the `trained` ones and their averages, what the `optimizer` keeps of them,
    and the most that a `step` has beside these: activations, gradients and what comes and goes."""

    frozen: int
    trained: int
    optimizer: int
    step: int

    @property
    def total(self) -> int:
        return self.frozen + self.trained + self.optimizer + self.step


def estimate(
    model: Model,
    weights: Trainable,
    batch: Batch,
    config: DistillConfig,
    rows: int,
    *,
    schedule: Schedule,
    prediction: Prediction = "epsilon",
) -> Memory:
    """The memory of a training by `distill` whose process has `rows` rows of each batch.

    batch: any two rows or more (z, cond, uncond), in their sizes. The loss and its gradients are computed on one row
    and on two, on the device where all is, and the bytes counted that torch's tensors have; what that grows by counts
    for each further row. Nothing is learned. Not counted: the examples, what else is loaded, and what the device's
    libraries and allocator need for themselves. ValueError for a batch of one.
    """
    z, cond, uncond = checked(batch, replace(config, accumulate=1), 1)
    if len(z) < 2:
        raise ValueError("the batch has one row; give at least two, by which further ones are estimated")
    loss_of = BatchLoss(model, weights, config, schedule, prediction)
    parameters = list(weights.parameters())
    scale = torch.amp.GradScaler(z.device.type, enabled=config.autocast == "float16").scale

    def work(count: int) -> None:
        part = slice(0, count)
        draw = draw_step(config, z, schedule, 0)[part]
        scale(loss_of(config.warm_start, z[part], cut(cond, part), cut(uncond, part), draw)).backward()

    peaks = []
    for count in (1, 2):
        with torch.random.fork_rng([z.device] if z.device.type == "cuda" else []):
            peaks.append(most_bytes(partial(work, count)))
        for p in parameters:
            p.grad = None
    rows = -(-rows // config.accumulate)
    values = sum(p.numel() for p in parameters)
    averages = (config.target_decay is not None) + (config.ema_decay is not None)
    return Memory(
        frozen=bytes_of(weights.frozen().values(), without=parameters),
        trained=(1 + averages) * bytes_of(parameters),
        optimizer=OPTIMIZERS[config.optimizer].state * values,
        step=max(peaks[0] + (rows - 1) * (peaks[1] - peaks[0]), bytes_of(parameters))
        + (bytes_of(parameters) if config.accumulate > 1 else 0),
    )


def bytes_of(tensors: Iterable[Tensor], without: Iterable[Tensor] = ()) -> int:
    """Of their storages, each once."""
    known = {t.untyped_storage()._cdata for t in without}
    return sum({s._cdata: s.nbytes() for t in tensors if (s := t.untyped_storage())._cdata not in known}.values())


def most_bytes(work: Callable[[], object]) -> int:
    """The most bytes that tensors made in `work`, its backward passes included, have at a time."""
    with LiveBytes() as live:
        work()
    return live.most


class LiveBytes(TorchDispatchMode):
    """Counts the storages that torch's operations make until they are freed; views and changes in place make none."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and (storage := t.untyped_storage())._cdata not in given:
                given.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.freed, storage.nbytes())
        return result

    def freed(self, size: int) -> None:
        self.now -= size
