"""The one file that touches ComfyUI's internals: model sampling, schedules, weight patches, noise and paths."""

import copy
import logging
import math
import os

import comfy.lora
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import folder_paths
import latent_preview
import torch
from torch import Tensor

from ..lcm_core.consistency import boundary_scalings, multistep_sample
from ..lcm_core.lora import LoRAVector, canonical_name, flat, spell
from ..lcm_core.noise import step_noise
from ..lcm_core.schedule import expand, lcm_timesteps

ARCHITECTURES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}  # by context width


def check_finite(**values: float) -> None:
    """ValueError for a NaN or infinite input, which the host's range checks let through."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}; it must be a finite number, such as 1.0")


class ConsistencySampling:
    """Mixed in before a model's own sampling class: f_θ(x, t) = c_skip(t)·x + c_out(t)·x̂₀ in place of x̂₀.

    x̂₀ is the base class's, so noise, v and flow predictions each keep their meaning. c_skip multiplies the sample as
    the network gets it, which for the host's variance-exploding sigmas is x/√(1 + σ²), the paper's x.
    """

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        x0 = super().calculate_denoised(sigma, model_output, model_input)  # type: ignore[misc]
        x = self.calculate_input(sigma, model_input)  # type: ignore[attr-defined]
        c_skip, c_out = boundary_scalings(self.timestep(sigma).flatten())  # type: ignore[attr-defined]
        return expand(c_skip, x) * x + expand(c_out, x0) * x0


def with_consistency_sampling(model):
    """A clone of the MODEL whose prediction is f_θ; the MODEL itself if it is patched already."""
    sampling = model.get_model_object("model_sampling")
    if isinstance(sampling, ConsistencySampling):
        return model
    own = type(sampling)
    if any(base.__name__ == "LCM" for base in own.__mro__):
        raise ValueError(
            "this model already went through ModelSamplingDiscrete with sampling 'lcm', which has a grid of its own; "
            "take that node out, this one does its work"
        )
    patched = copy.copy(sampling)
    patched.__class__ = type("Consistency" + own.__name__, (ConsistencySampling, own), {})
    model = model.clone()
    model.add_object_patch("model_sampling", patched)
    return model


def lcm_sigmas(model, steps: int, original_steps: int, strength: float) -> Tensor:
    """The host's sigmas (steps + 1,) at `lcm_timesteps` of the model's own schedule, and a final 0."""
    check_finite(denoise=strength)
    table = model.get_model_object("model_sampling").sigmas
    timesteps = lcm_timesteps(steps, original_steps=original_steps, strength=strength, train_steps=len(table))
    return torch.cat([table[timesteps].float().cpu(), torch.zeros(1)])


def sample_consistency(
    model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, gamma=1.0, indices=None
) -> Tensor:
    """`multistep_sample` as a sampler function of the host: x (B, C, H, W), sigmas descending to 0."""
    extra_args = extra_args or {}
    if sigmas[-1] != 0:
        raise ValueError(f"the sigmas end at {sigmas[-1].item():g}, but consistency sampling ends clean; end them at 0")
    sampling = model.inner_model.inner_model.model_sampling
    flow = isinstance(sampling, comfy.model_sampling.CONST)
    seed = extra_args.get("seed") or 0

    def process(sigma: float) -> tuple[float, float]:
        return (1 - sigma if flow else 1.0), sigma

    def intermediate(sigma: float, gamma: float) -> float:
        if flow:
            return (1 - gamma) * sigma
        timestep = sampling.timestep(torch.tensor([sigma]))
        return sampling.sigma(((1 - gamma) * timestep).floor()).item()

    def report(i: int, sigma: float, x: Tensor, denoised: Tensor) -> None:
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})

    return multistep_sample(
        lambda x, sigma: model(x, x.new_full((x.shape[0],), sigma), **extra_args),
        x,
        sigmas[:-1].tolist(),
        process,
        noise=lambda i: step_noise(x.shape, seed, i, indices),
        gamma=gamma,
        callback=report,
        intermediate=intermediate,
    )


def consistency_sampler(gamma: float, latent=None):
    """A SAMPLER of the host; `latent` tells the batch places of its images where they are not 0, 1, ..."""
    check_finite(gamma=gamma)
    indices = (latent or {}).get("batch_index")
    return comfy.samplers.KSAMPLER(sample_consistency, {"gamma": gamma, "indices": indices})


def sample_latent(model, positive, negative, latent, sampler, sigmas: Tensor, seed: int, cfg: float):
    """A LATENT made as the host's SamplerCustom makes it: same noise, guidance, masks, previews and interrupts."""
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    callback = latent_preview.prepare_callback(model, len(sigmas) - 1)
    result = comfy.sample.sample_custom(
        model, noise, cfg, sampler, sigmas, positive, negative, samples, noise_mask=latent.get("noise_mask"),
        callback=callback, disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed,
    )  # fmt: skip
    return {**latent, "samples": result}


def lora_files() -> list[str]:
    return folder_paths.get_filename_list("loras")


def load_vector(name: str) -> LoRAVector:
    """A LoRA of the host's loras folders."""
    return LoRAVector.load(folder_paths.get_full_path_or_raise("loras", name))


def save_path(prefix: str) -> str:
    """A new file name in the output folder, numbered so that nothing is overwritten."""
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    return os.path.join(folder, f"{name}_{counter:05}_.safetensors")


def architecture(vector: LoRAVector) -> str:
    """What a LoRA was made for, from its metadata or the width of its cross-attention."""
    for key in ("modelspec.architecture", "ss_base_model_version"):
        if key in vector.metadata:
            return vector.metadata[key]
    widths = {factors.shape[1] for name, factors in vector.modules.items() if name.endswith("attn2.to_k")}
    return ", ".join(ARCHITECTURES.get(width, f"context width {width}") for width in sorted(widths)) or "unknown"


def apply_vector(model, vector: LoRAVector, strength: float, source: str = "this LoRA"):
    """(clone of the MODEL with W + strength·ΔW, a line that says how much matched). Nothing is half applied.

    The host's weights are found by canonical name, so every dialect reaches every module. ValueError, naming both, for
    a LoRA that fits nothing, or of which a module has another shape.
    """
    check_finite(strength=strength)
    weights = {}
    for key in model.model.state_dict():
        if key.startswith("diffusion_model.") and key.endswith(".weight"):
            weights[flat(canonical_name(key.removesuffix(".weight")))] = key
    shapes = {name: factors.shape for name, factors in vector.modules.items() if not name.startswith("text_encoder")}
    host = type(model.model.model_config).__name__
    both = f"{source} is for {architecture(vector)} and the model is {host}"
    matched = {name: weights[flat(name)] for name in shapes if flat(name) in weights}
    if shapes and not matched:
        raise ValueError(f"none of the {len(shapes)} modules of {source} is in the model: {both}; use one made for it")
    for name, key in matched.items():
        weight = comfy.utils.get_attr(model.model, key)
        if math.prod(weight.shape) != math.prod(shapes[name]) or weight.shape[0] != shapes[name][0]:
            raise ValueError(
                f"{both}: {name} is {tuple(shapes[name])} in the LoRA and {tuple(weight.shape)} in the model; "
                "use a LoRA made for this architecture"
            )
    names = spell([*vector.modules, *(name.rpartition(".")[0] for name in vector.diffs)], "native")
    key_map = {native: weights[flat(name)] for name, native in names.items() if flat(name) in weights}
    patches = comfy.lora.load_lora(vector.state_dict("native"), key_map, log_missing=False)
    model = model.clone()
    model.add_patches(patches, strength)
    report = f"{source}: {len(matched)} of {len(shapes)} modules, rank {vector.rank}, strength {strength:g}"
    logging.info("LCM-LoRA: %s", report)
    return model, report
