"""Lumina 2, which counts time from noise to picture and predicts x₀ − ε."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..losses import Cond
from .family import Family, of_picture, picture_of


def velocity(network: nn.Module, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
    context, mask = cond
    return -network(
        hidden_states=x, timestep=1 - sigma, encoder_hidden_states=context, encoder_attention_mask=mask,
        return_dict=False,
    )[0]  # fmt: skip


def conditions(pipeline: Any, prompts: Sequence[str], guidance: float) -> list[Cond]:
    context, mask, _, _ = pipeline.encode_prompt(
        list(prompts), do_classifier_free_guidance=False, device=pipeline.transformer.device
    )
    return list(zip(context, mask, strict=True))


FAMILY = Family("Lumina2Pipeline", "Lumina 2", velocity, conditions, of_picture, picture_of)
