"""Z-Image, which counts time from noise to picture, predicts x₀ − ε and takes its batch as lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..losses import Cond
from .family import Family, of_picture, picture_of


def velocity(network: nn.Module, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
    (context,) = cond
    pictures = network(list(x[:, :, None].unbind(0)), 1 - sigma, list(context.unbind(0)), return_dict=False)[0]
    return -torch.stack(list(pictures)).squeeze(2)


def conditions(pipeline: Any, prompts: Sequence[str], guidance: float) -> list[Cond]:
    contexts, _ = pipeline.encode_prompt(
        list(prompts), device=pipeline.transformer.device, do_classifier_free_guidance=False
    )
    return [(context,) for context in contexts]


FAMILY = Family("ZImagePipeline", "Z-Image", velocity, conditions, of_picture, picture_of)
