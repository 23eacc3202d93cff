"""Stream batching: frames in a pipeline, one evaluation a frame."""

import comfy.samplers
import torch
from torch import Tensor

from ...lcm_core.consistency import stream_sample
from .hooks import changes_by_step
from .model_sampling import forward_process, preserving, thousandths
from .noise import ImageNoise, place_of
from .sampler import Rules


def sample_stream(
    model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, rules: Rules
) -> Tensor:
    """`stream_sample` as a sampler function of the host: x is N frames (N, C, H, W), sigmas descend to 0."""
    extra_args = extra_args or {}
    levels = sigmas[:-1].tolist()
    sampling = model.inner_model.inner_model.model_sampling
    process, intermediate = forward_process(sampling)
    indices, seed = rules.noise.indices or range(len(x)), extra_args.get("seed") or 0
    places = [place_of(t) for t in thousandths(sampling, levels[1:])]
    frames = stream_sample(
        lambda x, levels: model(x, x.new_tensor(levels), **extra_args),
        x * preserving(sampling, levels[0]),
        levels,
        process,
        noise=lambda frame, i: ImageNoise(indices=(indices[frame],)).at(places[i], (1, *x.shape[1:]), seed)[0],
        gamma=rules.gamma,
        intermediate=intermediate,
    )
    done = []
    for i, frame in enumerate(frames):
        done.append(frame)
        if callback is not None:
            callback({"x": x[i : i + 1], "i": i, "sigma": 0.0, "sigma_hat": 0.0, "denoised": frame[None]})
    return torch.stack(done)


def stream_sampler(rules: Rules, model, latent: dict, *conditionings):
    """A SAMPLER that pipelines the frames of `latent`.

    ValueError for a mask or conditioning that varies by frame, or a model whose frames attend to one another.
    """
    if model.model.model_config.unet_config.get("use_temporal_attention"):
        raise ValueError(
            "the frames of this model attend to one another, and in a stream each has a timestep of its own; use LCM "
            "Sampler for it"
        )
    if latent.get("noise_mask") is not None:
        raise ValueError("the latent has a noise mask, which stream batching does not take; use LCM Sampler for it")
    if any(map(changes_by_step, conditionings)):
        raise ValueError(
            "a conditioning has hooks whose strength changes over the steps, and the frames of a stream are at "
            "different steps at once; give the hooks one strength, or use LCM Sampler"
        )
    for cond, _ in (entry for conditioning in conditionings for entry in conditioning):
        if len(cond) > 1:
            raise ValueError(f"a conditioning has {len(cond)} rows, but all frames of a stream share one; give one row")
    return comfy.samplers.KSAMPLER(sample_stream, {"rules": rules})
