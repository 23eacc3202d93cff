"""ComfyUI's internals for sampling: model sampling, schedules, noise; and its files, progress and interrupts.

The files named host* alone touch what ComfyUI does not promise to keep.
"""

import copy
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..lcm_core.consistency import boundary_scalings, multistep_sample, stream_sample
from ..lcm_core.guidance import guidance_embedding, load_guidance_projection
from ..lcm_core.noise import BEFORE_STEPS, step_noise
from ..lcm_core.schedule import custom_timesteps, expand, lcm_timesteps
from ..lcm_core.text import quoted, shortened
from .checks import numbers


class ConsistencySampling:
    """Mixed in before a model's own sampling class: f_θ(x, t) = c_skip(t)·x + c_out(t)·x̂₀ in place of x̂₀.

    x̂₀ is the base class's, so noise, v and flow predictions each keep their meaning. c_skip multiplies the sample as
    the network gets it, which for the host's variance-exploding sigmas is x/√(1 + σ²), the paper's x.
    """

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        x0 = super().calculate_denoised(sigma, model_output, model_input)  # type: ignore[misc]
        x = self.calculate_input(sigma, model_input)  # type: ignore[attr-defined]
        c_skip, c_out = boundary_scalings(self.timestep(sigma).flatten().float())  # type: ignore[attr-defined]
        return expand(c_skip, x) * x + expand(c_out, x0) * x0


# Direct bases of a model's sampling class: one of each is understood.
SCHEDULES = {"ModelSamplingDiscrete", "ModelSamplingDiscreteFlow", "ModelSamplingFlux"}
PREDICTIONS = {"EPS", "V_PREDICTION", "X0", "CONST"}


def predicts_consistently(sampling) -> bool:
    """Whether a model's sampling gives f_θ: by this pack, by core's `lcm`, or as a flow, whose x̂₀ is x at σ = 0."""
    bases = {base.__name__ for base in type(sampling).__mro__}
    return bool(bases & {"ConsistencySampling", "LCM", "CONST"})


def with_consistency_sampling(model):
    """A clone of the MODEL whose prediction is f_θ.

    The MODEL itself if that is so already: after an earlier patch, and for flow models, whose x̂₀ = x − σ·v is x at
    σ = 0. ValueError for a sampling class whose timesteps or prediction are not the paper's.
    """
    sampling = model.get_model_object("model_sampling")
    if isinstance(sampling, ConsistencySampling):
        return model
    own = type(sampling)
    bases = {base.__name__ for base in own.__bases__}
    if "LCM" in bases:
        raise ValueError(
            "this model already went through ModelSamplingDiscrete with sampling 'lcm', which has a grid of its own; "
            "take that node out, this one does its work"
        )
    if not (bases & SCHEDULES and bases & PREDICTIONS):
        raise ValueError(
            f"the model samples as {' + '.join(sorted(bases))}, which consistency sampling is not defined for; use a "
            "model that predicts noise, v, the sample or a flow, and take out nodes that change its model sampling"
        )
    if "CONST" in bases:
        return model
    patched = copy.copy(sampling)
    patched.__class__ = type("Consistency" + own.__name__, (ConsistencySampling, own), {})
    model = model.clone()
    model.add_object_patch("model_sampling", patched)
    return model


class GuidanceConditioned:
    """Mixed in before the time MLP's own class: adds cond_proj(embedding of ω), (B, C), to the timestep embedding."""

    def forward(self, t_emb: Tensor) -> Tensor:
        rows, images = t_emb.shape[0], self.guidance.shape[0]  # type: ignore[attr-defined]
        if rows % images:
            raise ValueError(f"{images} values of omega for a batch of {rows}; give one, or one for each image")
        return super().forward(t_emb + self.guidance.to(t_emb).repeat(rows // images, 1))  # type: ignore[misc, attr-defined]


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
    patched = copy.copy(model.get_model_object("diffusion_model.time_embed"))
    if not isinstance(patched, GuidanceConditioned):
        own = type(patched)
        patched.__class__ = type("GuidanceConditioned" + own.__name__, (GuidanceConditioned, own), {})
    patched.guidance = guidance_embedding(torch.tensor(omega), projection.shape[1]) @ projection.float().T
    model = model.clone()
    model.add_object_patch("diffusion_model.time_embed", patched)
    return model


def full_lcm_files() -> list[str]:
    """Names in the checkpoints and diffusion_models folders that a guidance projection can be read from."""
    names = folder_paths.get_filename_list("checkpoints") + folder_paths.get_filename_list("diffusion_models")
    return [name for name in dict.fromkeys(names) if name.endswith(".safetensors")]


def load_projection(name: str) -> Tensor:
    """`cond_proj`'s weight (C, dim), from a file of the checkpoints or diffusion_models folders."""
    return load_guidance_projection(checkpoint_path(name))


def lcm_sigmas(model, steps: int, original_steps: int, strength: float, timesteps: str = "") -> Tensor:
    """The host's sigmas (n + 1,) and a final 0, on the model's own schedule.

    They are at `lcm_timesteps`, or at the user's `timesteps` if that text is not blank.
    """
    table = model.get_model_object("model_sampling").sigmas
    grid = {"original_steps": original_steps, "strength": strength, "train_steps": len(table)}
    if timesteps.strip():
        chosen = custom_timesteps(numbers("timesteps", timesteps, int, len(table)), **grid)
    else:
        chosen = lcm_timesteps(steps, **grid)
    return torch.cat([table[chosen].float().cpu(), torch.zeros(1)])


def forward_process(sampling):
    """(process, intermediate) of `multistep_sample` over a host model's sigmas.

    process(σ) is what the host's noise_scaling does to 1 and 0; intermediate(σ, γ) is ⌊(1 − γ)·t⌋ in timesteps, or
    (1 − γ)·σ in a flow.
    """

    def process(sigma: float) -> tuple[float, float]:
        level = torch.tensor([sigma])
        alpha = sampling.noise_scaling(level, torch.zeros(1), torch.ones(1))
        noise = sampling.noise_scaling(level, torch.ones(1), torch.zeros(1))
        return alpha.item(), noise.item()

    def intermediate(sigma: float, gamma: float) -> float:
        if isinstance(sampling, comfy.model_sampling.CONST):
            return (1 - gamma) * sigma
        timestep = sampling.timestep(torch.tensor([sigma]))
        return sampling.sigma(((1 - gamma) * timestep).floor()).item()

    return process, intermediate


def check_end(sigmas: Tensor) -> None:
    if len(sigmas) == 0 or sigmas[-1] != 0:
        raise ValueError(
            f"the sigmas are {quoted(sigmas.tolist())}, but consistency sampling ends clean; end them at 0"
        )


MOST_CFG = 2.0
CALC_COND_BATCH = "sampler_calc_cond_batch_function"


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


def sample_consistency(
    model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, gamma=1.0, guidance_until=1.0,
    indices=None, seeds=None,
) -> Tensor:  # fmt: skip
    """`multistep_sample` as a sampler function of the host: x (B, C, H, W), sigmas descending to 0.

    The first `guidance_until` share of the steps is guided; after that only the positive conditioning is evaluated.
    """
    check_end(sigmas)
    guided_args = extra_args or {}
    alone_args = {**guided_args, "model_options": without_guidance(guided_args.get("model_options", {}))}
    levels = sigmas[:-1].tolist()
    unguided = set(levels[math.ceil(guidance_until * len(levels) - 1e-6) :])
    seed = (guided_args.get("seed") or 0) if seeds is None else seeds
    sampling = model.inner_model.inner_model.model_sampling
    process, intermediate = forward_process(sampling)
    if not predicts_consistently(sampling):
        warn("the model predicts x̂₀, not f_θ: put LCM Model Sampling between it and this node")

    def denoise(x: Tensor, sigma: float) -> Tensor:
        if guided_args.get("denoise_mask") is not None:
            # Outside the mask the host noises the latent anew: with this, by the noise that x has there already.
            alpha, scale = process(sigma)
            model.noise = (x - alpha * model.latent_image) / scale
        return model(x, x.new_full((x.shape[0],), sigma), **(alone_args if sigma in unguided else guided_args))

    def report(i: int, sigma: float, x: Tensor, denoised: Tensor) -> None:
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})

    return multistep_sample(
        denoise, x, levels, process, noise=lambda i: step_noise(x.shape, seed, i, indices), gamma=gamma,
        callback=report, intermediate=intermediate,
    )  # fmt: skip


def consistency_sampler(gamma: float, guidance_until: float = 1.0, latent=None, seeds: list[int] | None = None):
    """A SAMPLER of the host; `latent` tells the batch places of its images where they are not 0, 1, ..."""
    options = {"gamma": gamma, "guidance_until": guidance_until, "seeds": seeds}
    if seeds is None:
        options["indices"] = (latent or {}).get("batch_index")
    return comfy.samplers.KSAMPLER(sample_consistency, options)


def sample_stream(
    model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, gamma=1.0, indices=None
) -> Tensor:
    """`stream_sample` as a sampler function of the host: x is N frames (N, C, H, W), sigmas descend to 0."""
    check_end(sigmas)
    extra_args = extra_args or {}
    process, intermediate = forward_process(model.inner_model.inner_model.model_sampling)
    places = indices or range(len(x))
    seed = extra_args.get("seed") or 0
    frames = stream_sample(
        lambda x, levels: model(x, x.new_tensor(levels), **extra_args),
        x,
        sigmas[:-1].tolist(),
        process,
        noise=lambda frame, i: step_noise((1, *x.shape[1:]), seed, i, [places[frame]])[0],
        gamma=gamma,
        intermediate=intermediate,
    )
    done = []
    for i, frame in enumerate(frames):
        done.append(frame)
        if callback is not None:
            callback({"x": x[i : i + 1], "i": i, "sigma": 0.0, "sigma_hat": 0.0, "denoised": frame[None]})
    return torch.stack(done)


def stream_sampler(gamma: float, latent: dict, *conditionings):
    """A SAMPLER that pipelines the frames of `latent`. ValueError for a mask or conditioning that varies by frame."""
    if latent.get("noise_mask") is not None:
        raise ValueError("the latent has a noise mask, which stream batching does not take; use LCM Sampler for it")
    for cond, _ in (entry for conditioning in conditionings for entry in conditioning):
        if len(cond) > 1:
            raise ValueError(f"a conditioning has {len(cond)} rows, but all frames of a stream share one; give one row")
    return comfy.samplers.KSAMPLER(sample_stream, {"gamma": gamma, "indices": latent.get("batch_index")})


def first_noise(samples: Tensor, seed: int, indices: Sequence[int] | None = None) -> Tensor:
    """The noise (B, …) that sampling begins with: the host's for a seed below 2³², `step_noise`'s above.

    The host's generator takes 32 bits of a seed. Nested latents keep the host's noise. ValueError for a seed below 0 or
    beyond 64 bits.
    """
    if samples.is_nested or 0 <= seed < 2**32:
        return comfy.sample.prepare_noise(samples, seed, indices)
    return step_noise(samples.shape, seed, BEFORE_STEPS, indices).to(samples.dtype)


def sample_latent(
    model, positive, negative, latent, sampler, sigmas: Tensor, seed: int, cfg: float,
    seeds: list[int] | None = None, progress: int | None = None,
):  # fmt: skip
    """A LATENT made as the host's SamplerCustom makes it: same noise (up to seed 2³² − 1), guidance, masks, previews
    and interrupts.

    seeds: one for each image, in place of `seed`. progress: how many reports the sampler makes, if not one a step.
    Where the latent's mask is 0 the result is the latent, bit for bit.
    """
    timesteps = ", ".join(f"{float(model.get_model_object('model_sampling').timestep(s)):.0f}" for s in sigmas[:-1])
    show_text(f"timesteps {shortened(timesteps)}")
    if cfg > MOST_CFG:
        warn(f"cfg {cfg:g} burns the picture: an LCM has its guidance inside; use 1, and {MOST_CFG:g} at most")
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    latent_format = model.get_model_object("latent_format")
    channels, dimensions = latent_format.latent_channels, latent_format.latent_dimensions
    if not samples.is_nested and samples.ndim != dimensions + 2:
        raise ValueError(
            f"the latent is {tuple(samples.shape)} and the model takes {dimensions + 2} dimensions; encode it with "
            "this model's VAE"
        )
    if samples.shape[1] != channels:
        raise ValueError(
            f"the latent has {samples.shape[1]} channels and the model takes {channels}; "
            "encode it with this model's VAE"
        )
    if seeds is None:
        noise = first_noise(samples, seed, latent.get("batch_index"))
    elif len(seeds) == len(samples):
        noise = torch.cat([first_noise(samples[:1], s) for s in seeds])
    else:
        raise ValueError(f"{len(seeds)} seeds for a batch of {len(samples)} images; give one for each image, or none")
    total = progress or len(sigmas) - 1
    report = latent_preview.prepare_callback(model, total)
    result = comfy.sample.sample_custom(
        model, noise, cfg, sampler, sigmas, positive, negative, samples, noise_mask=latent.get("noise_mask"),
        callback=lambda i, x0, x, _: report(i, x0, x, total), disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )  # fmt: skip
    if latent.get("noise_mask") is not None:
        mask = comfy.sampler_helpers.prepare_mask(latent["noise_mask"], samples.shape, result.device)
        result = torch.where(mask == 0, samples.to(result), result)
    return {**latent, "samples": result}


def checkpoint_path(name: str) -> str:
    """A file of the checkpoints or diffusion_models folders."""
    return model_path(name, "checkpoints", "diffusion_models")


def model_path(name: str, *folders: str) -> str:
    """A file of the host's folders of these kinds, the first that has it.

    FileNotFoundError without one; it quotes the name so that the host's log, which a stray character stops, takes it.
    """
    for folder in folders:
        if path := folder_paths.get_full_path(folder, name):
            return path
    there = " and ".join(f"models/{folder}" for folder in folders)
    raise FileNotFoundError(f"there is no file {quoted(name)} in {there}; choose one that is there")


def stamp(paths: Iterable[str]) -> str:
    """A text that changes when one of these files does."""
    return " ".join(f"{path}:{stat.st_size}:{stat.st_mtime_ns}" for path in paths for stat in [os.stat(path)])


def decomposition_device() -> torch.device:
    """The host's device if it is a GPU with float64, else the CPU."""
    device = comfy.model_management.get_torch_device()
    return device if device.type == "cuda" else torch.device("cpu")


def progress() -> Callable[[int, int], None]:
    """report(done, total) for long work: moves the node's progress bar, and raises when the user interrupts."""
    bar = comfy.utils.ProgressBar(1)

    def report(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return report


def show_text(text: str) -> None:
    """Shows a text in the node that is running, where there is a front end to show it."""
    if (context := get_executing_context()) is not None:
        from server import PromptServer

        PromptServer.instance.send_progress_text(inert(text), context.node_id)


def inert(text: str) -> str:
    """A text as it reads, without what a front end that inserts it as HTML would act on.

    Front ends up to 1.35.9 and some after them do, and they make a link of `[[label|address]]`, of which `__LNK0__` is
    their own mark; newer ones show the text as it is. So `<` becomes ‹, which reads alike in both, and spaces part the
    other two.
    """
    return re.sub(r"\[(?=\[)", "[ ", text.replace("<", "‹")).replace("__LNK", "__ LNK")


def warn(text: str) -> None:
    """Says in the node that is running, and in the log, that its result will look wrong."""
    logging.warning("LCM-LoRA: %s", text)
    show_text(f"⚠ {text}")
