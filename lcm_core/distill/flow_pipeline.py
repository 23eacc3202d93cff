"""A flow model through diffusers, as `distill` takes it: the teacher of the command line, beside `pipeline.Teacher`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..consistency import Prediction
from ..lora import metadata
from ..schedule import Flow, FlowSchedule
from .adapters import FLOW_TARGETS
from .families import FAMILIES, Family
from .identity import digest_of, encoders_identity
from .losses import Cond


@dataclass(frozen=True, eq=False)
class FlowTeacher:
    """model(x, σ, cond, omega) of `losses` over a pipeline of `families`, for pictures of about size × size pixels.

    The size decides the shift of models whose shift depends on it. `guidance` is what a network with a guidance of its
    own, as Flux.1 dev has, is given.
    """

    pipeline: Any
    size: int
    guidance: float = 3.5
    targets = FLOW_TARGETS
    dialect = "peft"
    saved = torch.bfloat16
    prediction: Prediction = "flow_prediction"

    @property
    def family(self) -> Family:
        return FAMILIES[type(self.pipeline).__name__]

    @property
    def metadata(self) -> dict[str, str]:
        """Of a LoRA of it: by whose names its modules go."""
        return {metadata.FAMILIES: self.family.names}

    @property
    def network(self) -> Any:
        return self.pipeline.transformer

    @property
    def schedule(self) -> FlowSchedule:
        return FlowSchedule(Flow(shift_of(self.pipeline.scheduler.config, (self.size // (2 * self.cell)) ** 2)))

    @property
    def guides_itself(self) -> bool:
        """Whether the network takes a guidance as an input, so that the teacher needs no second pass."""
        return bool(self.network.config.get("guidance_embeds"))

    @property
    def cell(self) -> int:
        """How many pixels a latent's pixel is wide."""
        return getattr(self.pipeline, "vae_scale_factor", None) or self.pipeline.vae_scale_factor_spatial

    def shape(self, size: int, frames: int = 1) -> tuple[int, ...]:
        """Of the latent of a picture of size × size pixels, or a video. ValueError for a video of a picture model."""
        config, side = self.pipeline.vae.config, size // self.cell
        channels = config.get("z_dim") or config.get("latent_channels")
        if self.family.frames:
            return channels, (frames - 1) // 4 + 1, side, side
        if frames > 1:
            raise ValueError(f"frames {frames} are of a video, and this model draws pictures; leave them out")
        return channels, side, side

    @cached_property
    def identity(self) -> dict[str, str]:
        """What a state must share beside the network's weights: its configuration, and what encodes."""
        config = {key: str(value) for key, value in self.network.config.items() if not key.startswith("_")}
        return {
            "architecture": digest_of(config),
            "encoders": encoders_identity(self.pipeline),
            "guidance": f"{self.guidance:g}" if self.guides_itself else "none",
        }

    def take_guidance(self) -> None:
        """Nothing: what is trained of a flow model has the guidance of the range that it learns in its weights."""

    def __call__(self, x: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Tensor:
        dtype = self.network.dtype
        given = tuple(c.to(dtype) if c.is_floating_point() else c for c in cond)
        return self.family.velocity(self.network, x.to(dtype), t.float(), given).to(x.dtype)

    @torch.no_grad()
    def conditions(self, prompt: str, size: tuple[int, int], *, empty: bool = False) -> Cond:
        """Tensors without a batch axis for a prompt; the unconditional one is the empty prompt's."""
        return self.conditions_of([prompt], size)[0]

    @torch.no_grad()
    def conditions_of(self, prompts: Sequence[str], size: tuple[int, int]) -> list[Cond]:
        """`conditions` of several prompts."""
        return self.family.conditions(self.pipeline, prompts, self.guidance)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """The latents (B, …), float32, of pictures (B, 3, height, width) in [0, 1]."""
        vae = self.pipeline.vae
        return self.family.encode(vae, (2 * pixels - 1).to(vae.device, vae.dtype)).float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The pictures (B, 3, height, width), float32 in [0, 1], of latents (B, …); of a video its middle frame."""
        vae = self.pipeline.vae
        pixels = self.family.decode(vae, latents.to(vae.device, vae.dtype))
        if pixels.ndim == 5:
            pixels = pixels[:, :, pixels.shape[2] // 2]
        return (pixels.float() / 2 + 0.5).clamp(0, 1)


def shift_of(config: Any, tokens: int) -> float:
    """The shift s of a scheduler of flows for pictures of so many tokens, from its configuration.

    With use_dynamic_shifting μ is linear between base_shift and max_shift in the number of tokens, and s = e^μ, or μ
    for the linear type (arXiv 2403.03206, section 5.3.2).
    """
    if not config.get("use_dynamic_shifting"):
        return float(config.get("flow_shift") or config.get("shift") or 1.0)
    least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu = low + (high - low) * (tokens - least) / (most - least)
    return mu if config.get("time_shift_type") == "linear" else math.exp(mu)
