"""The processes of a training, as `accelerate launch` or `torchrun` starts them: each has its rows of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .randomness import stream_seed

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Processes:
    """This process among those of Accelerate, or alone."""

    accelerator: Accelerator | None = None

    @property
    def rank(self) -> int:
        return self.accelerator.process_index if self.accelerator else 0

    @property
    def count(self) -> int:
        return self.accelerator.num_processes if self.accelerator else 1

    def share(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the parameters of process 0."""
        if self.accelerator is None:
            return
        from accelerate.utils import broadcast

        with torch.no_grad():
            for p in parameters:
                p.copy_(broadcast(p.detach().clone()))

    @contextmanager
    def seeded(self, seed: int, step: int, device: torch.device) -> Iterator[None]:
        """What else draws random numbers, such as dropout, has a stream for each step and process."""
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(stream_seed(seed, step, "process", self.rank))
            yield

    def parts(self, rows: int, accumulate: int) -> Iterator[tuple[slice, float]]:
        """This process's rows of a batch in `accumulate` parts, each with its share of this process's mean."""
        mine = rows // self.count
        for part in torch.arange(self.rank * mine, (self.rank + 1) * mine).tensor_split(accumulate):
            yield slice(int(part[0]), int(part[-1]) + 1), len(part) / mine

    def average(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
        """The mean of the processes' losses (); every gradient becomes that of the processes' gradients."""
        if self.accelerator is None or self.count == 1:
            return loss
        return average_gradients(self.accelerator, parameters, loss)


def average_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
    """Replace every gradient by its mean over the processes, in one exchange; returns the mean of the losses ()."""
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = accelerator.reduce(torch.cat([*(g.flatten() for g in grads), loss.reshape(1)]), reduction="mean")
    *parts, mean = flat.split([*(g.numel() for g in grads), 1])
    for grad, part in zip(grads, parts, strict=True):
        grad.copy_(part.view_as(grad))
    return mean.reshape(())
