"""Which noise the images of a batch get, at first and at each step."""

from collections.abc import Sequence
from dataclasses import dataclass

import comfy.nested_tensor
import comfy.sample
import torch
from torch import Tensor

from ...lcm_core.noise import BEFORE_STEPS, step_noise


@dataclass(frozen=True)
class ImageNoise:
    """The noise of images by the run's seed and their places in the batch, or by a seed of their own each."""

    seeds: tuple[int, ...] = ()
    indices: tuple[int, ...] | None = None

    def first(self, samples: Tensor, seed: int) -> Tensor:
        """The noise that sampling begins with, like `samples`. ValueError for seeds of other images."""
        if not self.seeds:
            return first_noise(samples, seed, self.indices)
        if len(self.seeds) != samples.shape[0]:
            raise ValueError(
                f"{len(self.seeds)} seeds for a batch of {samples.shape[0]} images; give one for each image, or none"
            )
        each = [first_noise(samples[:1], own) for own in self.seeds]
        return comfy.nested_tensor.cat_nested(each) if samples.is_nested else torch.cat(each)

    def at(self, place: int, shape: Sequence[int], seed: int) -> Tensor:
        """The noise (B, …) that a step adds to come to the level at a place of the model's schedule."""
        return step_noise(shape, self.seeds or seed, place, None if self.seeds else self.indices)


def first_noise(samples: Tensor, seed: int, indices: Sequence[int] | None = None) -> Tensor:
    """The noise (B, …) that sampling begins with: the host's for a seed below 2³², `step_noise`'s above.

    The host's generator takes 32 bits of a seed. Each part of a nested latent has noise of its own. ValueError for a
    seed below 0 or beyond 64 bits.
    """
    if 0 <= seed < 2**32:
        return comfy.sample.prepare_noise(samples, seed, indices)
    parts = samples.unbind() if samples.is_nested else [samples]
    noises = [step_noise(s.shape, seed, BEFORE_STEPS - i, indices).to(s.dtype) for i, s in enumerate(parts)]
    return comfy.nested_tensor.NestedTensor(noises) if samples.is_nested else noises[0]


def place_of(timestep: float) -> int:
    """A level's place as a whole number: hundredths of the timesteps that users write, 1 … 100000.

    By the level alone, so that a part of a schedule has the noise that the whole has there.
    """
    return round(100 * (timestep + 1))
