"""What the trainer asks of a flow model of diffusers, and what several of them have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..losses import Cond

PATCH = 2  # latent pixels a token is wide


@dataclass(frozen=True)
class Family:
    """A family of flow models.

    pipeline: the name of diffusers' class. names: that of the network's spellings in `lora.names`.
    velocity: (network, x (B, …), σ (B,), conditions (B, …)) -> v = ε − x₀, like x.
    conditions: (pipeline, prompts, guidance) -> of each prompt tensors without a batch axis.
    encode: (vae, pixels (B, 3, H, W) in [−1, 1]) -> the latents (B, …) in the network's scale.
    decode: (vae, latents (B, …) in that scale) -> pixels (B, 3, H, W) in [−1, 1]; of videos (B, 3, T, H, W).
    frames: whether a latent (C, T, H, W) has frames, four of a video's in each after the first.
    """

    pipeline: str
    names: str
    velocity: Callable[[nn.Module, Tensor, Tensor, Cond], Tensor]
    conditions: Callable[[Any, Sequence[str], float], list[Cond]]
    encode: Callable[[Any, Tensor], Tensor]
    decode: Callable[[Any, Tensor], Tensor]
    frames: bool = False


def of_picture(vae: Any, pixels: Tensor) -> Tensor:
    """An autoencoder of pictures whose latents have one shift and one scale."""
    latent = vae.encode(pixels).latent_dist.mean
    return (latent - (vae.config.shift_factor or 0)) * vae.config.scaling_factor


def of_video(vae: Any, pixels: Tensor) -> Tensor:
    """An autoencoder of videos, whose latents have a mean and a deviation in each channel; a picture is one frame."""
    latent = vae.encode(pixels[:, :, None]).latent_dist.mean
    mean, deviation = _statistics(vae, latent)
    return (latent - mean) / deviation


def picture_of(vae: Any, latents: Tensor) -> Tensor:
    """The pixels of `of_picture`'s latents."""
    return vae.decode(latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)).sample


def video_of(vae: Any, latents: Tensor) -> Tensor:
    """The pixels of `of_video`'s latents, with an axis of frames."""
    mean, deviation = _statistics(vae, latents)
    return vae.decode(latents * deviation + mean).sample


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    mean, deviation = (
        torch.tensor(values).to(like).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, deviation


def packed(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H/2 · W/2, 4·C): a token is two pixels wide and high."""
    return rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH)


def unpacked(tokens: Tensor, like: Tensor) -> Tensor:
    """The inverse of `packed`, in the shape of `like`."""
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=like.shape[-2] // PATCH, p=PATCH, q=PATCH)
