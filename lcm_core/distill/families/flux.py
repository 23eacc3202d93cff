"""Flux.1, whose own guidance is an input of the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..losses import Cond
from .family import PATCH, Family, of_picture, packed, picture_of, unpacked


def velocity(network: nn.Module, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
    context, pooled, *guidance = cond
    height, width = (side // PATCH for side in x.shape[-2:])
    places = torch.cartesian_prod(torch.arange(1), torch.arange(height), torch.arange(width)).to(x)
    tokens = network(
        hidden_states=packed(x), timestep=sigma, guidance=guidance[0] if guidance else None, img_ids=places,
        encoder_hidden_states=context, pooled_projections=pooled, txt_ids=x.new_zeros(context.shape[1], 3),
        return_dict=False,
    )[0]  # fmt: skip
    return unpacked(tokens, x)


def conditions(pipeline: Any, prompts: Sequence[str], guidance: float) -> list[Cond]:
    device = pipeline.transformer.device
    context, pooled, _ = pipeline.encode_prompt(list(prompts), list(prompts), device=device)
    own = (torch.tensor(guidance, device=device),) if pipeline.transformer.config.guidance_embeds else ()
    return [(*pair, *own) for pair in zip(context, pooled, strict=True)]


FAMILY = Family("FluxPipeline", "Flux", velocity, conditions, of_picture, picture_of)
