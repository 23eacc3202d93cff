"""Guidance: which steps are guided, and the ω that a full LCM is told."""

import math
from collections.abc import Callable, Sequence
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
    """Which share of a run's steps is guided, [start, end), and whether the negative is evaluated at the first only."""

    start: float = 0.0
    end: float = 1.0
    residual: bool = False

    def steps(self, count: int) -> range:
        """The guided ones of `count` steps; a share that ends inside a step has it."""
        return range(*(math.ceil(share * count - 1e-6) for share in (self.start, self.end)))


def options_by_level(guidance: Guidance, levels: Sequence[float], model_options: dict) -> dict[float, dict]:
    """The host's model_options at each level of a run, under which that step is guided or not."""
    guided = with_residual_guidance(model_options) if guidance.residual else model_options
    alone, steps = without_guidance(model_options), guidance.steps(len(levels))
    return {level: guided if i in steps else alone for i, level in enumerate(levels)}


def conditions_evaluated(model_options: dict) -> Callable[[dict], list[Tensor]]:
    """What evaluates a list of conditionings, of which those that are None cost nothing."""
    return model_options.get(CALC_COND_BATCH) or (
        lambda args: comfy.samplers.calc_cond_batch(
            args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
        )
    )


def positive_alone(args: dict) -> dict:
    return {**args, "conds": [args["conds"][0], *[None] * (len(args["conds"]) - 1)]}


def without_guidance(model_options: dict) -> dict:
    """model_options under which only the positive conditioning is evaluated and taken for all."""
    evaluate = conditions_evaluated(model_options)
    return {
        **model_options,
        CALC_COND_BATCH: lambda args: evaluate(positive_alone(args))[:1] * len(args["conds"]),
    }


def with_residual_guidance(model_options: dict) -> dict:
    """model_options under which the first evaluation has all conditionings, and later ones only the positive.

    Residual guidance with a one-time negative (Kodaira et al., *StreamDiffusion*, arXiv 2312.12491): the negative's
    noise at a later x is (x − α·x̂₀⁻)/σ for the x̂₀⁻ that it predicted first, so x̂₀⁻ is its prediction throughout.
    """
    evaluate, kept = conditions_evaluated(model_options), []

    def negative_once(args: dict) -> list[Tensor]:
        if not kept:
            found = evaluate(args)
            kept.extend(found[1:])
            return found
        return [*evaluate(positive_alone(args))[:1], *kept]

    return {**model_options, CALC_COND_BATCH: negative_once}
