"""What a teacher makes of samples: latents and conditions of pictures, or of prompts that it draws itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...consistency import Prediction
from ...schedule import Schedule
from ..losses import Cond
from .cache import Make, chunks
from .drawn import sample_latents
from .examples import on, repeated
from .pictures import Size, Views, encode_pictures
from .shards import Made
from .source import Sample


class Encoder(Protocol):
    """What encodes: a `pipeline.Teacher` or a `FlowTeacher`."""

    def conditions_of(self, prompts: Sequence[str], size: Size) -> list[Cond]: ...
    def encode(self, pixels: Tensor) -> Tensor: ...


class Drawer(Encoder, Protocol):
    """What draws, too."""

    @property
    def schedule(self) -> Schedule: ...
    @property
    def prediction(self) -> Prediction: ...
    def __call__(self, x: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Tensor: ...


def pictures_by(encoder: Encoder, sizes: Sequence[Size], views: Views, batch: int) -> Make:
    """Encodes pictures, each at its bucket's size, and their captions, up to `batch` at once."""

    def make(samples: Sequence[Sample]) -> Iterator[tuple[int, Made]]:
        encoded = encode_pictures(samples, encoder.encode, sizes, views, batch)
        for size, group in itertools.groupby(encoded, key=lambda each: each[1]):
            for some in chunks(group, batch):
                cond = conditions(encoder, [samples[i].caption for i, _, _ in some], size)
                yield from ((i, Made(z, c)) for (i, _, z), c in zip(some, cond, strict=True))

    return make


def drawings_by(
    teacher: Drawer,
    uncond: Cond,
    shape: tuple[int, ...],
    size: Size,
    *,
    steps: int,
    seed: int,
    batch: int,
    device: torch.device | str,
) -> Make:
    """Has the teacher draw latents of a shape for prompts, up to `batch` at once, as `sample_latents` does."""

    def make(samples: Sequence[Sample]) -> Iterator[tuple[int, Made]]:
        done = 0
        for some in chunks(samples, batch):
            conds = conditions(teacher, [sample.caption for sample in some], size)
            for _, alike in itertools.groupby(conds, key=lambda cond: [c.shape for c in cond]):
                rows = list(alike)
                given = tuple(torch.stack(column) for column in zip(*rows, strict=True))
                latents = sample_latents(
                    teacher, on(given, device), repeated(uncond, len(rows)), shape, schedule=teacher.schedule,
                    prediction=teacher.prediction, steps=steps, seed=seed, first=int(samples[done].content),
                )  # fmt: skip
                for z, cond in zip(latents.cpu(), rows, strict=True):
                    yield done, Made(z[None].clone(), cond)
                    done += 1

    return make


def conditions(encoder: Encoder, prompts: Sequence[str], size: Size) -> list[Cond]:
    """The conditions of prompts, on the CPU; what is there several times is encoded once."""
    unique = list(dict.fromkeys(prompts))
    known = dict(zip(unique, encoder.conditions_of(unique, size), strict=True))
    return [tuple(c.cpu() for c in known[prompt]) for prompt in prompts]
