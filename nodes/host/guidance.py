"""Guidance: which steps are guided, and the ω that a full LCM is told."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import comfy.samplers
import torch
from torch import Tensor

from ...lcm_core.guidance import guidance_embedding, load_guidance_projection
from .files import checkpoint_path


class GuidanceConditioned(torch.nn.Sequential):
    """A time MLP's own layers, after cond_proj(embedding of ω), (B, C), is added to the timestep embedding."""

    def __init__(self, guidance: Tensor, *layers: torch.nn.Module) -> None:
        super().__init__(*layers)
        self.guidance = guidance

    def forward(self, t_emb: Tensor) -> Tensor:
        rows, images = t_emb.shape[0], self.guidance.shape[0]
        if rows % images:
            raise ValueError(f"{images} values of omega for a batch of {rows}; give one, or one for each image")
        return super().forward(t_emb + self.guidance.to(t_emb).repeat(rows // images, 1))


def with_guidance_embedding(model, projection: Tensor, omega: list[float]):
    """A clone of the MODEL, a full LCM, that is told ω, one for all images or one for each.

    projection: `cond_proj`'s weight (C, dim). ValueError for an ω below 0 or not finite, or a model that is no UNet of
    that width.
    """
    for value in omega:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"omega is {value}; it must be 0 or more, such as 7.5 (diffusers' guidance_scale 8.5)")
    embed = getattr(model.model.diffusion_model, "time_embed", None)
    width = embed[0].in_features if embed is not None else None
    if width != projection.shape[0]:
        raise ValueError(
            f"the file's cond_proj adds to a timestep embedding of width {projection.shape[0]} and the model's has "
            f"{width or 'none'}; choose the file that the model was loaded from"
        )
    guidance = guidance_embedding(torch.tensor(omega), projection.shape[1]) @ projection.float().T
    layers = model.get_model_object("diffusion_model.time_embed")
    model = model.clone()
    model.add_object_patch("diffusion_model.time_embed", GuidanceConditioned(guidance, *layers))
    return model


def load_projection(name: str) -> Tensor:
    """`cond_proj`'s weight (C, dim), from a file of the checkpoints or diffusion_models folders."""
    return load_guidance_projection(checkpoint_path(name))


CALC_COND_BATCH = "sampler_calc_cond_batch_function"


@dataclass(frozen=True)
class Guidance:
    """Which share of a run's steps is guided: from `start` on, until before `end`."""

    start: float = 0.0
    end: float = 1.0

    def steps(self, count: int) -> range:
        """The guided ones of `count` steps; a share that ends inside a step has it."""
        return range(*(math.ceil(share * count - 1e-6) for share in (self.start, self.end)))


def options_by_level(guidance: Guidance, levels: Sequence[float], model_options: dict) -> dict[float, dict]:
    """The host's model_options at each level of a run, under which that step is guided or not."""
    alone, steps = without_guidance(model_options), guidance.steps(len(levels))
    return {level: model_options if i in steps else alone for i, level in enumerate(levels)}


def without_guidance(model_options: dict) -> dict:
    """model_options under which only the positive conditioning is evaluated and taken for all."""
    evaluate = model_options.get(CALC_COND_BATCH) or (
        lambda args: comfy.samplers.calc_cond_batch(
            args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
        )
    )

    def positive_alone(args: dict) -> list[Tensor]:
        conds = args["conds"]
        return evaluate({**args, "conds": [conds[0], *[None] * (len(conds) - 1)]})[:1] * len(conds)

    return {**model_options, CALC_COND_BATCH: positive_alone}
