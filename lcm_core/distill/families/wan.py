"""Wan 2.1 T2V, whose latents are videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..losses import Cond
from .family import Family, of_video, video_of


def velocity(network: nn.Module, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
    (context,) = cond
    return network(hidden_states=x, timestep=1000 * sigma, encoder_hidden_states=context, return_dict=False)[0]


def conditions(pipeline: Any, prompts: Sequence[str], guidance: float) -> list[Cond]:
    device = pipeline.transformer.device
    context, _ = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False, device=device)
    return [(c,) for c in context]


FAMILY = Family("WanPipeline", "Wan", velocity, conditions, of_video, video_of, frames=True)
