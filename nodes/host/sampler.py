"""Multistep consistency sampling as a SAMPLER of the host, and a LATENT made with one."""

import inspect
from dataclasses import dataclass
from typing import Any

import comfy.nested_tensor
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ...lcm_core.accelerators import settled
from ...lcm_core.consistency import multistep_sample
from ...lcm_core.text import shortened
from .guidance import Guidance, options_by_level
from .model_sampling import consistency, forward_process, preserving, thousandths
from .noise import ImageNoise, place_of
from .recipes import recipe_on
from .report import Said, tell, warn


@dataclass(frozen=True)
class Rules:
    """How a run steps: γ, that of the model's recipe where it is None, which steps are guided, and the images' noise.

    levels: those of the whole run, if this is a part of one; the shares of guidance are of these.
    """

    gamma: float | None = 1.0
    guidance: Guidance = Guidance()
    noise: ImageNoise = ImageNoise()
    levels: tuple[float, ...] = ()


def sample_consistency(
    model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, rules: Rules
) -> Tensor:
    """`multistep_sample` as a sampler function of the host: x (B, C, H, W), sigmas descending.

    It ends clean at a last sigma of 0, and otherwise with the noise of that level, for another sampler to go on.
    """
    given: dict[str, Any] = extra_args or {}
    *levels, last = sigmas.tolist()
    sampling = model.inner_model.inner_model.model_sampling
    if consistency(sampling) != "x0":
        warn("the model predicts x̂₀, not f_θ: put LCM Model Sampling between it and this node")
    if not levels:
        return x
    gamma = rules.gamma
    if gamma is None:
        gamma = settled(recipe_on(model.inner_model.model_patcher)).gamma.default
    mask = given.get("denoise_mask")
    process, intermediate = forward_process(sampling)
    options = options_by_level(rules.guidance, rules.levels or levels, given.get("model_options", {}))
    every, seed = [*levels, last], given.get("seed") or 0

    def noise_of(level: float) -> Tensor:
        (timestep,) = thousandths(sampling, [level])
        return rules.noise.at(place_of(timestep), x.shape, seed)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        if mask is not None:
            # Outside the mask the host noises the latent anew, on its own scale: with this, to what x is there already.
            alpha, noisy = (each / preserving(sampling, sigma) for each in process(sigma))
            model.noise = (x - alpha * model.latent_image) / noisy
        return model(x, x.new_full((x.shape[0],), sigma), **given | {"model_options": options[sigma]})

    def report(i: int, sigma: float, x: Tensor, denoised: Tensor) -> None:
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})

    def noise_so_far() -> Tensor:
        """What the run that this part is of has as noise at its first level, where its f_θ is the latent."""
        earlier = [level for level in rules.levels if level > levels[0]]
        if not earlier:
            return noise_of(levels[0])
        first, whole = torch.tensor(earlier[:1]), comfy.samplers.Sampler().max_denoise(model.inner_model, earlier)
        noisy = sampling.noise_scaling(first, rules.noise.first(x, seed).to(x), torch.zeros_like(x), whole)
        noisy = multistep_sample(
            lambda x, _: torch.zeros_like(x), noisy * preserving(sampling, earlier[0]), earlier, process,
            noise=lambda i: noise_of([*earlier[1:], levels[0]][i]), gamma=gamma, intermediate=intermediate,
            until=levels[0],
        )  # fmt: skip
        return noisy / process(levels[0])[1]

    if mask is not None and not model.noise.any():
        # A sample with its noise on, whose part outside the mask is clean, gets the noise there that the run had.
        outside = model.inner_model.inner_model.scale_latent_inpaint(
            x=x, sigma=sigmas[:1].expand(len(x)), noise=noise_so_far().to(x), latent_image=model.latent_image,
            denoise_mask=mask,
        )  # fmt: skip
        x = x * mask + outside * (1 - mask)
    x = multistep_sample(
        denoise, x * preserving(sampling, levels[0]), levels, process, noise=lambda i: noise_of(every[i + 1]),
        gamma=gamma, callback=report, intermediate=intermediate, until=last or None,
    )  # fmt: skip
    return x / preserving(sampling, last)


def consistency_sampler(rules: Rules):
    """A SAMPLER of the host."""
    return comfy.samplers.KSAMPLER(sample_consistency, {"rules": rules})


def batch_places(latent: dict) -> tuple[int, ...] | None:
    """The places in their batch of a LATENT's images, where they are not 0, 1, ..."""
    indices = latent.get("batch_index")
    return None if indices is None else tuple(indices)


def part(sigmas: Tensor, start: int, end: int, leftover_noise: bool) -> Tensor:
    """The sigmas of the steps from `start` until before `end`, as core's KSamplerAdvanced takes them.

    A part that ends early ends clean, or with its noise left over. ValueError if there is no such step.
    """
    steps = len(sigmas) - 1
    if start >= min(end, steps):
        raise ValueError(
            f"start_at_step {start} and end_at_step {end} leave none of the {steps} steps; start below {steps} and end "
            "after the start"
        )
    chosen = sigmas[start : end + 1].clone()
    if not leftover_noise:
        chosen[-1] = 0
    return chosen


@dataclass(frozen=True)
class Task:
    """What is sampled: the host's MODEL, CONDITIONINGs and LATENT, with its seed and its guidance."""

    model: Any
    positive: list
    negative: list
    latent: dict
    seed: int
    cfg: float


def sample_latent(
    task: Task,
    sampler,
    sigmas: Tensor,
    noise: ImageNoise,
    *,
    said: Said,
    add_noise: bool = True,
    progress: int | None = None,
) -> dict:
    """A LATENT made as the host's SamplerCustom makes it: same noise (up to seed 2³² − 1), guidance, masks, previews
    and interrupts.

    said: what the node says beside its timesteps. add_noise: False for a latent that has its noise. progress: how many
    reports the sampler makes, if not one a step.
    Where the latent's mask is 0 the result is the latent, bit for bit.
    """
    model, latent = task.model, task.latent
    shown = thousandths(model.get_model_object("model_sampling"), sigmas[:-1].tolist())
    tell(said + Said((f"timesteps {shortened(', '.join(f'{t:.0f}' for t in shown))}",)))
    samples = fitted(model, latent)
    drawn = noise.first(samples, task.seed) if add_noise else samples * 0.0
    mask, total = latent.get("noise_mask"), progress or len(sigmas) - 1
    report = latent_preview.prepare_callback(model, total)
    result = comfy.sample.sample_custom(
        model, drawn, task.cfg, sampler, sigmas, task.positive, task.negative, samples, noise_mask=mask,
        callback=lambda i, x0, x, _: report(i, x0, x, total), disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=task.seed,
    )  # fmt: skip
    made = {name: value for name, value in latent.items() if not name.startswith("downscale_ratio")}
    return made | {"samples": result if mask is None else outside_kept(result, samples, mask)}


def fitted(model, latent: dict) -> Tensor:
    """The samples of a LATENT; an empty one in the size and channels that the model takes. ValueError for another's.

    Newer hosts' empty latents say for which scale of picture they were made.
    """
    fit = comfy.sample.fix_empty_latent_channels
    samples = fit(model, **{"latent_image": latent["samples"]} | {
        name: latent[name] for name in inspect.signature(fit).parameters if name in latent
    })  # fmt: skip
    if samples.is_nested:
        return samples
    latent_format = model.get_model_object("latent_format")
    channels, dimensions = latent_format.latent_channels, latent_format.latent_dimensions
    if samples.ndim != dimensions + 2:
        raise ValueError(
            f"the latent is {tuple(samples.shape)} and the model takes {dimensions + 2} dimensions; encode it with "
            "this model's VAE"
        )
    if samples.shape[1] != channels:
        raise ValueError(
            f"the latent has {samples.shape[1]} channels and the model takes {channels}; "
            "encode it with this model's VAE"
        )
    return samples


def outside_kept(result: Tensor, samples: Tensor, mask: Tensor) -> Tensor:
    """The result, with the samples where the mask is 0; parts of a nested latent that have no mask are the result's."""
    if not result.is_nested:
        mask = comfy.sampler_helpers.prepare_mask(mask, samples.shape, result.device)
        return torch.where(mask == 0, samples.to(result), result)
    masks = mask.unbind() if mask.is_nested else [mask]
    kept = [outside_kept(*each) for each in zip(result.unbind(), samples.unbind(), masks, strict=False)]
    return comfy.nested_tensor.NestedTensor([*kept, *result.unbind()[len(kept) :]])
