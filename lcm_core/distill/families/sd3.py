"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

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


def conditions(pipeline: Any, prompt: str, guidance: float) -> Cond:
    device = pipeline.transformer.device
    context, _, pooled, _ = pipeline.encode_prompt(
        prompt, prompt, prompt, device=device, do_classifier_free_guidance=False
    )
    return context[0], pooled[0]


FAMILY = Family("StableDiffusion3Pipeline", "Stable Diffusion 3", velocity, conditions, of_picture, picture_of)
