"""Qwen-Image, whose autoencoder is one of videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..losses import Cond
from .family import PATCH, Family, of_video, packed, unpacked, video_of


def velocity(network: nn.Module, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
    (context,) = cond
    height, width = (side // PATCH for side in x.shape[-2:])
    tokens = network(
        hidden_states=packed(x), timestep=sigma, encoder_hidden_states=context,
        encoder_hidden_states_mask=torch.ones(context.shape[:2], dtype=torch.long, device=x.device),
        img_shapes=[[(1, height, width)]] * len(x), return_dict=False,
    )[0]  # fmt: skip
    return unpacked(tokens, x)


def conditions(pipeline: Any, prompts: Sequence[str], guidance: float) -> list[Cond]:
    context, mask = pipeline.encode_prompt(list(prompts), device=pipeline.transformer.device)
    masks = [None] * len(context) if mask is None else mask.bool()
    return [(c if m is None else c[m],) for c, m in zip(context, masks, strict=True)]


def encode(vae: Any, pixels: Tensor) -> Tensor:
    return of_video(vae, pixels)[:, :, 0]


def decode(vae: Any, latents: Tensor) -> Tensor:
    return video_of(vae, latents[:, :, None])[:, :, 0]


FAMILY = Family("QwenImagePipeline", "Qwen-Image", velocity, conditions, encode, decode)
