"""Classifier-free guidance, and the embedding by which a full LCM takes the guidance scale as an input."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from .files import open_safetensors
from .schedule import expand
from .text import quoted


def guided(cond: Tensor, uncond: Tensor, scale: float | Tensor) -> Tensor:
    """uncond + scale·(cond − uncond): classifier-free guidance (arXiv 2207.12598) of two predictions (B, …).

    Scale 1 is cond alone. The guidance ω of LCM distillation, cond + ω·(cond − uncond), is scale 1 + ω.
    `scale` is one number or (B,); returns (B, …) in the dtype of cond.
    """
    return (uncond + expand(scale, cond) * (cond - uncond)).to(cond.dtype)


def guidance_embedding(w: float | Tensor, dim: int = 256) -> Tensor:
    """The sinusoidal embedding of ω, input of a full LCM's `cond_proj`: (B,) -> (B, dim) float32 on the CPU.

    [sin(1000·ω·f), cos(1000·ω·f)] with f_i = 10000^(−i/(half − 1)), half = dim // 2; an odd dim ends with a zero.
    arXiv 2310.04378. Sampling at guidance scale g embeds ω = g − 1.
    ValueError for a dim under 4 or an ω that is not finite.
    """
    if dim < 4:
        raise ValueError(f"dim is {dim}; the embedding needs at least 4, and LCM checkpoints use 256")
    omega = torch.as_tensor(w.detach().cpu() if isinstance(w, Tensor) else [w], dtype=torch.float64)
    if omega.ndim != 1 or not omega.isfinite().all():
        raise ValueError(
            f"guidance {quoted(omega.tolist())} must be a finite number, or one for each image in shape (B,)"
        )
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float64) * (-math.log(10000.0) / (half - 1)))
    angles = 1000.0 * omega[:, None] * frequencies
    embedding = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(embedding, (0, dim % 2)).to(torch.float32)


PROJECTIONS = ("time_embed.cond_proj.weight", "time_embedding.cond_proj.weight")  # LDM, diffusers


def load_guidance_projection(path: str | os.PathLike[str]) -> Tensor:
    """The weight (C, dim) by which a full LCM adds `guidance_embedding` to its timestep embedding of width C.

    Read lazily from a safetensors checkpoint, or from a bare UNet in diffusers' names. Raises FileNotFoundError, and
    ValueError for another kind of file or one without that weight.
    """
    with open_safetensors(path) as file:
        for key in file.keys():  # noqa: SIM118
            if key.endswith(PROJECTIONS):
                return file.get_tensor(key)
    raise ValueError(
        f"{path} has no {PROJECTIONS[0]}, so it is not a full LCM that takes its guidance as an input; "
        "a model with an LCM-LoRA needs no guidance embedding"
    )
