"""The one file that touches ComfyUI's internals: model sampling, schedules, weight patches, noise and paths."""

import copy
import difflib
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath

import comfy.lora
import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import comfy.weight_adapter
import folder_paths
import latent_preview
import torch
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..lcm_core.consistency import boundary_scalings, multistep_sample, stream_sample
from ..lcm_core.guidance import guidance_embedding, load_guidance_projection
from ..lcm_core.lora import LoRAVector, canonical_name, files, flat, spell
from ..lcm_core.lora.files import output_path
from ..lcm_core.lora.keys import listed
from ..lcm_core.lora.native import Size, adapter_sizes, native_adapters, rescaled, rotated
from ..lcm_core.lora.record import EXPRESSION, PARENTS, file_record
from ..lcm_core.noise import step_noise
from ..lcm_core.schedule import custom_timesteps, expand, lcm_timesteps

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
        c_skip, c_out = boundary_scalings(self.timestep(sigma).flatten().float())  # type: ignore[attr-defined]
        return expand(c_skip, x) * x + expand(c_out, x0) * x0


# Direct bases of a model's sampling class: one of each is understood.
SCHEDULES = {"ModelSamplingDiscrete", "ModelSamplingDiscreteFlow", "ModelSamplingFlux"}
PREDICTIONS = {"EPS", "V_PREDICTION", "X0", "CONST"}


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


def numbers(name: str, text: str, kind: type[int] | type[float] = float) -> list:
    """The numbers of a text like "999, 759, 499, 259"; ValueError for a word that is not one."""
    try:
        return [kind(word) for word in text.replace(",", " ").split()]
    except ValueError as error:
        whole = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{name} is {text!r}; give {whole} with commas between: {error}") from error


def lcm_sigmas(model, steps: int, original_steps: int, strength: float, timesteps: str = "") -> Tensor:
    """The host's sigmas (n + 1,) and a final 0, on the model's own schedule.

    They are at `lcm_timesteps`, or at the user's `timesteps` if that text is not blank.
    """
    check_finite(denoise=strength)
    table = model.get_model_object("model_sampling").sigmas
    grid = {"original_steps": original_steps, "strength": strength, "train_steps": len(table)}
    if timesteps.strip():
        chosen = custom_timesteps(numbers("timesteps", timesteps, int), **grid)
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
        raise ValueError(f"the sigmas are {sigmas.tolist()}, but consistency sampling ends clean; end them at 0")


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
    process, intermediate = forward_process(model.inner_model.inner_model.model_sampling)

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
    check_finite(gamma=gamma, guidance_until=guidance_until)
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
    check_finite(gamma=gamma)
    if latent.get("noise_mask") is not None:
        raise ValueError("the latent has a noise mask, which stream batching does not take; use LCM Sampler for it")
    for cond, _ in (entry for conditioning in conditionings for entry in conditioning):
        if len(cond) > 1:
            raise ValueError(f"a conditioning has {len(cond)} rows, but all frames of a stream share one; give one row")
    return comfy.samplers.KSAMPLER(sample_stream, {"gamma": gamma, "indices": latent.get("batch_index")})


def sample_latent(
    model, positive, negative, latent, sampler, sigmas: Tensor, seed: int, cfg: float,
    seeds: list[int] | None = None, progress: int | None = None,
):  # fmt: skip
    """A LATENT made as the host's SamplerCustom makes it: same noise, guidance, masks, previews and interrupts.

    seeds: one for each image, in place of `seed`. progress: how many reports the sampler makes, if not one a step.
    Where the latent's mask is 0 the result is the latent, bit for bit.
    """
    check_finite(cfg=cfg)
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    channels = model.get_model_object("latent_format").latent_channels
    if samples.shape[1] != channels:
        raise ValueError(
            f"the latent has {samples.shape[1]} channels and the model takes {channels}; "
            "encode it with this model's VAE"
        )
    if seeds is None:
        noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    elif len(seeds) == len(samples):
        noise = torch.cat([comfy.sample.prepare_noise(samples[:1], s) for s in seeds])
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


def lora_files() -> list[str]:
    return folder_paths.get_filename_list("loras")


def load_vector(name: str) -> LoRAVector:
    """A LoRA of the host's loras folders."""
    return LoRAVector.load(lora_path(name))


def load_adapters(name: str) -> "LoRATensors":
    """A LORA_MODEL of the host's loras folders with the file's own adapters, vectors or not; errors name the file."""
    path = lora_path(name)
    tensors, metadata = files.read_lora(path)
    try:
        adapters = native_adapters(tensors, metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    metadata.pop("lora_adapter_metadata", None)
    lora = LoRATensors(LoRAVector(metadata=metadata), file_record(path))
    lora.update(adapters)
    return lora


def save_path(prefix: str) -> str:
    """A new file name in the output folder, numbered so that nothing is overwritten; its folder is made.

    ValueError for a prefix that leads out of the output folder.
    """
    output_path(folder_paths.get_output_directory(), prefix)
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    return os.path.join(folder, f"{name}_{counter:05}_.safetensors")


def architecture(sizes: Mapping[str, Size], metadata: Mapping[str, str]) -> str:
    """What a LoRA was made for, from its metadata or the width of its cross-attention."""
    for key in ("modelspec.architecture", "ss_base_model_version"):
        if key in metadata:
            return metadata[key]
    widths = {size[1] for name, size in sizes.items() if name.endswith("attn2.to_k.weight") and size[1]}
    return ", ".join(ARCHITECTURES.get(width, f"context width {width}") for width in sorted(widths)) or "unknown"


class DoRA(comfy.weight_adapter.WeightAdapterBase):
    """`weights` = (adapter, magnitude). The host divides a magnitude of outputs by ‖W‖, where DoRA has ‖W + ΔW‖."""

    name = "dora"

    def __init__(self, loaded_keys, weights):
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(self, weight, key, strength, *args, **kwargs):
        adapter, magnitude = self.weights
        merged = adapter.calculate_weight(weight.clone(), key, 1.0, *args, **kwargs)
        return weight.lerp_(rescaled(merged, magnitude), strength)


class InputRotation(comfy.weight_adapter.WeightAdapterBase):
    """`weights` = (rotations,): PEFT's OFT turns the inputs, the host's the outputs."""

    name = "input rotation"

    def __init__(self, loaded_keys, weights):
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(self, weight, key, strength, *args, **kwargs):
        return weight.lerp_(rotated(weight, self.weights[0]), strength)


def adapter_patches(adapters: Mapping[str, Tensor], key_map: Mapping[str, str | tuple]) -> dict:
    """The host's patches of `native_adapters`: its `load_lora`'s, but for DoRA and PEFT's OFT."""
    magnitudes = {key: tensor for key, tensor in adapters.items() if key.endswith(".dora_scale")}
    plain = {key: tensor for key, tensor in adapters.items() if key not in magnitudes}
    patches = comfy.lora.load_lora(plain, key_map, log_missing=False)
    for name, target in key_map.items():
        if (magnitude := magnitudes.get(f"{name}.dora_scale")) is not None:
            patches[target] = DoRA({f"{name}.dora_scale"}, (patches[target], magnitude))
        if (rotations := adapters.get(f"{name}.oft_R")) is not None:
            patches[target] = InputRotation({f"{name}.oft_R"}, (rotations,))
    return patches


def find_targets(
    model: torch.nn.Module, key_map: Mapping[str, str | tuple], sizes: Mapping[str, Size], both: str
) -> dict[str, str | tuple]:
    """Canonical name -> what the host's key map says for it, of the modules in `sizes` that the model has.

    The host's own names are made canonical, so every dialect reaches every module. ValueError where sizes differ.
    """
    targets = {flat(canonical_name(name)): target for name, target in key_map.items()}
    found = {}
    for parameter, size in sizes.items():
        name, _, kind = parameter.rpartition(".")
        target = targets.get(flat(name))
        if target is None:
            continue
        found[name] = target
        key, offset = (target, None) if isinstance(target, str) else target[:2]
        weight = getattr(comfy.utils.get_attr(model, key.rpartition(".")[0]), kind, None)
        shape = [] if weight is None else list(weight.shape)
        if offset is not None:
            shape[offset[0]] = offset[2]
        have = (shape[0], math.prod(shape[1:])) if shape else ()
        if len(have) != 2 or any(a not in (None, b) for a, b in zip(size, have, strict=True)):
            raise ValueError(
                f"{both}: {parameter} is {size} in the LoRA and {have or 'missing'} in the model, as (out, in); "
                "use a LoRA made for this architecture"
            )
    return found


def apply_vector(model, lora: Mapping[str, Tensor], strength: float, source: str = "this LoRA", clip=None):
    """(clone of the MODEL with W + strength·ΔW, clone of the CLIP if there is one, a line that says how much matched).

    lora: any LORA_MODEL, vector or not. Nothing is half applied. ValueError, naming both, for a LoRA that fits nothing,
    or of which a module has another size than the model's.
    """
    check_finite(strength=strength)
    adapters = native_adapters(lora)
    sizes = adapter_sizes(adapters)
    host = type(model.model.model_config).__name__
    both = f"{source} is for {architecture(sizes, getattr(lora, 'metadata', {}))} and the model is {host}"
    texts = {name: size for name, size in sizes.items() if name.startswith(("text_encoder", "lora_te"))}
    units = {name: size for name, size in sizes.items() if name not in texts}
    found = find_targets(model.model, comfy.lora.model_lora_keys_unet(model.model, {}), units, both)
    found_texts = {}
    if clip is not None:
        encoder = clip.cond_stage_model
        found_texts = find_targets(encoder, comfy.lora.model_lora_keys_clip(encoder, {}), texts, both)
    count, text_count = (len({name.rpartition(".")[0] for name in part}) for part in (units, texts))
    if sizes and not found and not found_texts:
        raise ValueError(
            f"none of the {count + text_count} modules of {source} is in the model: {both}; "
            + ("connect a CLIP, they are a text encoder's" if not units else "use one made for it")
        )
    names = spell([name.rpartition(".")[0] for name in sizes], "native")
    model = model.clone()
    model.add_patches(adapter_patches(adapters, {names[name]: target for name, target in found.items()}), strength)
    if clip is not None:
        clip = clip.clone()
        clip.add_patches(adapter_patches(adapters, {names[n]: target for n, target in found_texts.items()}), strength)
    rank = max((t.shape[0] for key, t in adapters.items() if key.endswith(".lora_down.weight")), default=None)
    report = f"{source}: {len(found)} of {count} modules, {f'rank {rank}, ' if rank else ''}strength {strength:g}"
    if texts and clip is None:
        report += f"; {text_count} text encoder modules are left out, connect a CLIP to apply them"
    elif texts:
        report += f"; {len(found_texts)} of {text_count} text encoder modules"
    logging.info("LCM-LoRA: %s", report)
    return model, clip, report


class LoRATensors(dict[str, Tensor]):
    """A LORA_MODEL, the host's dict of tensors, with what that has no place for.

    metadata: the text entries of its file. record: what vectors that are made of it say of it (`lcm_core.lora.record`).
    """

    def __init__(self, vector: LoRAVector, record: Mapping[str, str]) -> None:
        super().__init__(vector.state_dict("native"))
        self.metadata = dict(vector.metadata)
        self.record = dict(record)


def to_vector(lora: Mapping[str, Tensor]) -> LoRAVector:
    """The vector of any LORA_MODEL, core's plain dicts included."""
    return LoRAVector.from_state_dict(lora, getattr(lora, "metadata", None))


def record_of(lora: Mapping[str, Tensor]) -> dict[str, str]:
    """The record of a LORA_MODEL; none for core's plain dicts."""
    return getattr(lora, "record", {})


def read_lora(name: str) -> LoRATensors:
    """A LORA_MODEL of the host's loras folders, recorded as this file."""
    return LoRATensors(load_vector(name), file_record(lora_path(name)))


def history(lora: Mapping[str, Tensor]) -> dict[str, str]:
    """How a LORA_MODEL was made: its file's own record where it has one."""
    metadata = getattr(lora, "metadata", {})
    return {key: metadata[key] for key in (EXPRESSION, PARENTS) if key in metadata} or record_of(lora)


def find_lora(name: str) -> str:
    """The file of the loras folders that a user means by its path or its bare name, `.safetensors` left out or not.

    LookupError for a name that fits no file, ValueError for a bare name that fits several.
    """
    wanted = PurePosixPath(name.replace("\\", "/"))
    paths = {file: PurePosixPath(file.replace("\\", "/")) for file in lora_files()}
    whole = [file for file, path in paths.items() if wanted in (path, _without_suffix(path))]
    bare = [file for file, path in paths.items() if str(wanted) in (path.name, _without_suffix(path).name)]
    fitting = whole or bare
    if len(fitting) > 1:
        raise ValueError(f"the name {name!r} fits {listed(fitting, 8)} of models/loras; write one of these paths")
    if not fitting:
        stems = {_without_suffix(path).name.lower(): file for file, path in paths.items()}
        close = difflib.get_close_matches(_without_suffix(wanted).name.lower(), stems)
        similar = ", ".join(stems[stem] for stem in close)
        raise LookupError(f"models/loras has {similar}" if similar else "models/loras has no name like it")
    return fitting[0]


def _without_suffix(path: PurePosixPath) -> PurePosixPath:
    return path.with_suffix("") if path.suffix == ".safetensors" else path


def lora_path(name: str) -> str:
    """A file of the loras folders."""
    return folder_paths.get_full_path_or_raise("loras", name)


def checkpoint_path(name: str) -> str:
    """A file of the checkpoints or diffusion_models folders."""
    path = folder_paths.get_full_path("checkpoints", name)
    return path or folder_paths.get_full_path_or_raise("diffusion_models", name)


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

        PromptServer.instance.send_progress_text(text, context.node_id)
