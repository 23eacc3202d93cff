"""A Stable Diffusion checkpoint through diffusers, as `distill` takes it: the teacher of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..consistency import Prediction
from ..files import open_safetensors, read_text
from ..guidance import guidance_embedding
from ..schedule import NoiseSchedule
from .adapters import LCM_TARGETS
from .families import FAMILIES
from .flow_pipeline import FlowTeacher
from .identity import digest_of, encoders_identity
from .losses import Cond

GUIDANCE_WIDTH = 256  # of the embedding of ω, as LCM checkpoints have it
NAMES = ("encoder_hidden_states", "text_embeds", "time_ids")


@dataclass(frozen=True, eq=False)
class Teacher:
    """model(x, t, cond, omega) of `losses` over a diffusers pipeline of Stable Diffusion 1.x, 2.x or SDXL."""

    pipeline: Any
    targets = LCM_TARGETS
    dialect = "kohya"
    saved = torch.float16
    guides_itself = False

    @property
    def metadata(self) -> dict[str, str]:
        """Of a LoRA of it."""
        return {}

    @property
    def network(self) -> nn.Module:
        return self.pipeline.unet

    @property
    def schedule(self) -> NoiseSchedule:
        return NoiseSchedule(self.pipeline.scheduler.alphas_cumprod)

    @property
    def prediction(self) -> Prediction:
        return self.pipeline.scheduler.config.prediction_type

    @property
    def two_encoders(self) -> bool:
        return getattr(self.pipeline, "text_encoder_2", None) is not None

    def shape(self, size: int, frames: int = 1) -> tuple[int, ...]:
        """(C, H, W) of the latent of a picture of size × size pixels. ValueError for a video."""
        if frames > 1:
            raise ValueError(f"frames {frames} are of a video, and this model draws pictures; leave them out")
        return self.pipeline.unet.config.in_channels, size // self.cell, size // self.cell

    @property
    def cell(self) -> int:
        """How many pixels a latent's pixel is wide."""
        return self.pipeline.vae_scale_factor

    @cached_property
    def identity(self) -> dict[str, str]:
        """What a state must share beside the UNet's weights: the UNet's configuration, and what encodes."""
        return {
            "architecture": digest_of({k: v for k, v in self.pipeline.unet.config.items() if not k.startswith("_")}),
            "encoders": encoders_identity(self.pipeline),
        }

    def take_guidance(self) -> None:
        """Give the UNet ω as an input, if it has none: a `cond_proj` of zeros, so that it is as it was at first."""
        unet = self.pipeline.unet
        if not unet.config.time_cond_proj_dim:
            like = unet.time_embedding.linear_1.weight
            projection = nn.Linear(GUIDANCE_WIDTH, like.shape[1], bias=False, device=like.device, dtype=like.dtype)
            nn.init.zeros_(projection.weight)
            unet.time_embedding.cond_proj = projection
            unet.register_to_config(time_cond_proj_dim=GUIDANCE_WIDTH)

    def __call__(self, x: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Tensor:
        unet = self.pipeline.unet
        context, *added = (c.to(unet.dtype) for c in cond)
        more: dict[str, Any] = {"added_cond_kwargs": dict(zip(NAMES[1:], added, strict=True))} if added else {}
        if omega is not None and unet.config.time_cond_proj_dim:
            more["timestep_cond"] = guidance_embedding(omega, unet.config.time_cond_proj_dim).to(x.device, unet.dtype)
        return unet(x.to(unet.dtype), t, encoder_hidden_states=context, **more).sample.to(x.dtype)

    @torch.no_grad()
    def conditions(self, prompt: str, size: tuple[int, int], *, empty: bool = False) -> Cond:
        """Tensors without a batch axis for a prompt and a picture's size (width, height).

        `empty` is the unconditional one: the encoded "" for Stable Diffusion, zeros for SDXL.
        """
        (cond,) = self.conditions_of([prompt], size)
        if empty and self.two_encoders:
            embeds, pooled, places = cond
            return torch.zeros_like(embeds), torch.zeros_like(pooled), places
        return cond

    @torch.no_grad()
    def conditions_of(self, prompts: Sequence[str], size: tuple[int, int]) -> list[Cond]:
        """`conditions` of several prompts; none is the unconditional one."""
        device, texts = self.pipeline.unet.device, list(prompts)
        if not self.two_encoders:
            return [(embeds,) for embeds in self.pipeline.encode_prompt(texts, device, 1, False)[0]]
        embeds, _, pooled, _ = self.pipeline.encode_prompt(texts, device=device, do_classifier_free_guidance=False)
        width, height = size
        places = torch.tensor([height, width, 0, 0, height, width], device=device)
        return [(e, p, places) for e, p in zip(embeds, pooled, strict=True)]

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """The latents (B, C, H, W), float32, of pictures (B, 3, height, width) in [0, 1]."""
        vae = self.pipeline.vae
        latent = vae.encode((2 * pixels - 1).to(vae.device, vae.dtype)).latent_dist.mean
        return latent.float() * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The pictures (B, 3, height, width), float32 in [0, 1], of latents (B, C, H, W)."""
        vae = self.pipeline.vae
        pixels = vae.decode((latents / vae.config.scaling_factor).to(vae.device, vae.dtype)).sample
        return (pixels.float() / 2 + 0.5).clamp(0, 1)


def load_teacher(
    checkpoint: Path, device: str = "cpu", dtype: torch.dtype = torch.float32, *, size: int = 512
) -> Teacher | FlowTeacher:
    """A folder in diffusers' layout, or a single .safetensors file, whose family's configuration diffusers then gets.

    A file is of Stable Diffusion 1.x, 2.x or SDXL; a folder may also be of a flow model, which learns for pictures of
    about size × size pixels.

    ImportError without diffusers, FileNotFoundError without checkpoint, ValueError for what is no such checkpoint.
    """
    from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

    if not checkpoint.exists():
        raise FileNotFoundError(f"{checkpoint} does not exist; give a diffusers folder or a .safetensors checkpoint")
    pipeline: Any
    if checkpoint.is_dir():
        if not (checkpoint / "model_index.json").is_file():
            raise ValueError(f"{checkpoint} has no model_index.json; give a folder that diffusers saved a pipeline in")
        pipeline = DiffusionPipeline.from_pretrained(checkpoint, local_files_only=True)
    else:
        with open_safetensors(checkpoint) as file:
            xl = any(key.startswith("conditioner.embedders.1.") for key in file.keys())  # noqa: SIM118
        family = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
        pipeline = family.from_single_file(str(checkpoint))
    kind = type(pipeline).__name__
    known = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "LatentConsistencyModelPipeline", *FAMILIES)
    if kind not in known:
        raise ValueError(f"{checkpoint} is a {kind}; these can be distilled: {', '.join(known)}")
    if getattr(pipeline, "transformer_2", None) is not None:
        raise ValueError(f"{checkpoint} has two transformers, for noisy and for clean steps; give a model with one")
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    pipeline.to(device, dtype)
    return FlowTeacher(pipeline, size) if kind in FAMILIES else Teacher(pipeline)


def read_prompts(path: Path) -> Sequence[str]:
    """The lines of a text file that are not blank. ValueError if there are none, and as `read_text`."""
    prompts = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"{path} has no prompts; write one a line")
    return prompts
