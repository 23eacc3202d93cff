"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..losses import Cond
from .family import Family, of_picture, picture_of


def velocity(network: nn.Module, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
    context, pooled = cond
    return network(
        hidden_states=x, timestep=1000 * sigma, encoder_hidden_states=context, pooled_projections=pooled,
        return_dict=False,
    )[0]  # fmt: skip


def conditions(pipeline: Any, prompts: Sequence[str], guidance: float) -> list[Cond]:
    device = pipeline.transformer.device
    texts = [list(prompts)] * 3
    context, _, pooled, _ = pipeline.encode_prompt(*texts, device=device, do_classifier_free_guidance=False)
    return list(zip(context, pooled, strict=True))


FAMILY = Family("StableDiffusion3Pipeline", "Stable Diffusion 3", velocity, conditions, of_picture, picture_of)
