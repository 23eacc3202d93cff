"""Reproducible noise: every image and every step has a stream of its own, on the CPU, whatever the device or batch."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from .text import quoted

BEFORE_STEPS = 2**64 - 1  # the step of the noise that sampling begins with: no sampler takes so many


def step_noise(
    shape: Sequence[int], seed: int | Sequence[int], step: int, indices: Sequence[int] | None = None
) -> Tensor:
    """Standard normal noise for a batch, `shape` (B, …), float32 on the CPU; row b is that of image indices[b].

    Each row depends on (seed, image index, step) and the shape of one image alone, so an image is the same bit for bit
    in any batch and by itself. The generator is the counter-based Philox (Salmon et al., *Parallel random numbers: as
    easy as 1, 2, 3*, SC 2011) with the seed as key and (index, step) as the counter's upper half: the streams cannot
    overlap, and all 64 bits of the seed count.

    seed: 0 … 2⁶⁴ − 1, one for all or B of them. step: 0, 1, …, one for each draw. indices: the images' places in the
    full batch, by default 0 … B − 1, or all 0 where each image has its own seed, as if made by itself.
    ValueError for a value outside these, or a number of seeds or indices other than B.
    """
    if len(shape) == 0:
        raise ValueError("shape is empty; give (B, …), the number of images first")
    seeds = seed if isinstance(seed, Sequence) else [seed] * shape[0]
    if indices is None:
        indices = [0] * shape[0] if seeds is seed else range(shape[0])
    for name, values in (("indices", indices), ("seeds", seeds)):
        if len(values) != shape[0]:
            raise ValueError(f"{len(values)} {name} for a batch of {shape[0]} images; give one for each image")
    checked = [*(("seed", s) for s in seeds), ("step", step), *(("image index", index) for index in indices)]
    for name, value in checked:
        if not (isinstance(value, Integral) and 0 <= value < 2**64):
            raise ValueError(f"{name} {quoted(value)} is not in 0 … 2**64 - 1; choose a whole number in that range")
    noise = torch.empty(tuple(shape), dtype=torch.float32)
    for row, key, index in zip(noise, seeds, indices, strict=True):
        counter = np.array([0, 0, step, index], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
        generator.standard_normal(dtype=np.float32, out=row.numpy())
    return noise
