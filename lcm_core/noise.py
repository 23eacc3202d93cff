"""Reproducible noise: every image and every step has a stream of its own, on the CPU, whatever the device or batch."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import numpy as np
import torch
from torch import Tensor


def step_noise(shape: Sequence[int], seed: int, step: int, indices: Sequence[int] | None = None) -> Tensor:
    """Standard normal noise for a batch, `shape` (B, …), float32 on the CPU; row b is that of image indices[b].

    Each row depends on (seed, image index, step) and the shape of one image alone, so an image is the same bit for bit
    in any batch and by itself. The generator is the counter-based Philox (Salmon et al., *Parallel random numbers: as
    easy as 1, 2, 3*, SC 2011) with the seed as key and (index, step) as the counter's upper half: the streams cannot
    overlap, and all 64 bits of the seed count.

    seed: 0 … 2⁶⁴ − 1. step: 0, 1, …, one for each draw. indices: the images' places in the full batch, by default
    0 … B − 1. ValueError for a value outside these, or a number of indices other than B.
    """
    if len(shape) == 0:
        raise ValueError("shape is empty; give (B, …), the number of images first")
    indices = range(shape[0]) if indices is None else indices
    if len(indices) != shape[0]:
        raise ValueError(f"{len(indices)} indices for a batch of {shape[0]} images; give one index for each image")
    for name, value in [("seed", seed), ("step", step), *(("image index", index) for index in indices)]:
        if not (isinstance(value, Integral) and 0 <= value < 2**64):
            raise ValueError(f"{name} {value!r} is not in 0 … 2**64 - 1; choose a whole number in that range")
    noise = torch.empty(tuple(shape), dtype=torch.float32)
    for row, index in zip(noise, indices, strict=True):
        counter = np.array([0, 0, step, index], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=seed, counter=counter))
        generator.standard_normal(dtype=np.float32, out=row.numpy())
    return noise
