"""Latents that are not one whole picture's: in stages, masked, nested, of another scale. Prints facts as JSON.

python -m tests.host.latents COMFYUI BASE
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from tests.host.features import Bench, Facts, Watched, empty, extra, frames, largest, message
from tools.inprocess import load_host


def latent(bench: Bench, model=None, node: str = "LCMLoRA_Sampler", **inputs) -> dict:
    given = {"positive": bench.positive, "negative": bench.negative, "latent": empty(1), "seed": 5}
    return bench.host.run(node, model=model or bench.model, **given | inputs)[0]


def staged(bench: Bench, given: dict, split: int = 2, model=None, **inputs) -> Tensor:
    """The samples of two LCM Samplers, the second of which goes on from the first's noisy ones."""
    first = latent(bench, model, latent=given, end_at_step=split, return_with_leftover_noise=True, **inputs)
    return latent(bench, model, latent=first, start_at_step=split, add_noise=False, **inputs)["samples"]


def stages(bench: Bench) -> Facts:
    """Two stages against one run, by what the run has beside its steps; and what ends early ends at."""
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    masked = {"latent": {"samples": 5 * frames(2), "noise_mask": mask}, "seed": 9}
    facts: Facts = {}
    for name, inputs in {
        "plain": {},
        "one step": {"split": 1},
        "seeds": {"latent": empty(3), "seeds": "7, 21, 8"},
        "batch": {"latent": empty(2) | {"batch_index": [4, 2]}},
        "picture": {"latent": {"samples": frames(1)}, "denoise": 0.7, "seed": 6},
        "guided": {"cfg": 1.5, "guidance_until": 0.75, "guidance_from": 0.25, "steps": 8, "split": 3},
        **{f"mask {gamma}": masked | {"gamma": gamma} for gamma in (1.0, 0.3, 0.0)},
    }.items():
        split = inputs.pop("split", 2)
        given = {"latent": empty(1)} | inputs
        whole = latent(bench, **given)["samples"]
        facts[name] = largest(staged(bench, given.pop("latent"), split, **given), whole)
    shown = Watched(bench.model)
    early = latent(bench, shown.model, end_at_step=2)["samples"]
    facts["timesteps"] = shown.timesteps()
    facts["clean"] = largest(early, latent(bench, timesteps="999, 759")["samples"])
    facts["nothing"] = message(lambda: latent(bench, start_at_step=4))
    facts["backwards"] = message(lambda: latent(bench, start_at_step=2, end_at_step=1))
    return facts


class PairedNetwork(torch.nn.Module):
    """A network of nested latents as the host's are: a picture's and a sound's in a list, and both out."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.dtype, self.shapes = network, network.dtype, []

    def forward(self, x: list[Tensor], t: Tensor, **conditions) -> list[Tensor]:
        picture, sound = x
        self.shapes.append([list(picture.shape), list(sound.shape)])
        return [self.network(picture, t, **conditions), 0.3 * sound]


def nested(bench: Bench) -> Facts:
    """A stand-in for a model of pictures with sound: each of a batch alone, in stages, streamed, and its masks."""
    nested_tensor, conds = importlib.import_module("comfy.nested_tensor"), importlib.import_module("comfy.conds")
    sampler = importlib.import_module(f"{bench.host.pack.__name__}.nodes.host.sampler")
    model = bench.plain.clone()
    network, own = PairedNetwork(model.model.diffusion_model), model.model.extra_conds
    model.add_object_patch("diffusion_model", network)
    model.add_object_patch(
        "extra_conds", lambda **given: own(**given) | {"latent_shapes": conds.CONDConstant(given["latent_shapes"])}
    )

    def silent(batch: int, **more) -> dict:
        return {"samples": nested_tensor.NestedTensor([torch.zeros(batch, 4, 8, 8), torch.zeros(batch, 3, 6)])} | more

    def parts(made: dict) -> list[Tensor]:
        return made["samples"].unbind()

    def apart(a: list[Tensor], b: list[Tensor]) -> list[float]:
        return [largest(x, y) for x, y in zip(a, b, strict=True)]

    seeds = [7, 2**40]
    batch = parts(latent(bench, model, latent=silent(2), seeds=", ".join(map(str, seeds))))
    alone = [parts(latent(bench, model, latent=silent(1), seed=seed)) for seed in seeds]
    whole = parts(latent(bench, model, latent=silent(2)))
    network.shapes.clear()
    streamed = parts(latent(bench, model, "LCMLoRA_StreamBatch", latent=silent(2)))
    widest = max(shape[0][0] for shape in network.shapes)
    given, made = silent(1)["samples"] + 1, silent(1)["samples"] + 2
    half = torch.zeros(1, 1, 8, 8)
    half[..., :4] = 1
    kept = sampler.outside_kept(made, given, half).unbind()
    both = sampler.outside_kept(made, given, nested_tensor.NestedTensor([half, torch.zeros(1, 3, 6)])).unbind()
    return {
        "shapes": [list(part.shape) for part in batch],
        "alone": [apart([p[i : i + 1] for p in batch], alone[i]) for i in range(2)],
        "different": apart(*alone),
        "staged": apart(staged(bench, silent(2), model=model).unbind(), whole),
        "streamed": apart(streamed, whole),
        "widest": widest,
        "kept": [[part.min().item(), part.max().item()] for part in (*kept, *both)],
    }


def scales(bench: Bench) -> Facts:
    """An empty latent that was made for another scale of picture, on hosts that fit such ones to the model."""
    sample = importlib.import_module("comfy.sample")
    own, told = sample.fix_empty_latent_channels, {}

    def fit(model, latent_image, downscale_ratio_spacial=None, downscale_ratio_temporal=None):
        told.update(spacial=downscale_ratio_spacial, temporal=downscale_ratio_temporal)
        return own(model, latent_image[..., ::2, ::2])

    given = empty(1) | {"downscale_ratio_spacial": 4, "batch_index": [0]}
    old = latent(bench, latent=given)
    sample.fix_empty_latent_channels = fit
    try:
        new = latent(bench, latent=given)
    finally:
        sample.fix_empty_latent_channels = own
    return {
        "new": list(new["samples"].shape),
        "told": told,
        "names": sorted(old) + sorted(new),
    }


def preserved(bench: Bench) -> Facts:
    """A prediction that takes the sample as it is, variance-preserving, against one that is given it scaled to that."""
    sampling = importlib.import_module("comfy.model_sampling")

    class V_PREDICTION_DDPM(sampling.V_PREDICTION):  # noqa: N801 - the host's name
        def calculate_input(self, sigma, noise):
            return noise

        def calculate_denoised(self, sigma, model_output, model_input):
            sigma = sigma.view(sigma.shape[:1] + (1,) * (model_output.ndim - 1))
            return (model_input - model_output * sigma) / (sigma**2 + 1) ** 0.5

        def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
            return super().noise_scaling(sigma, noise, latent_image, max_denoise)

    class CogVideoX(sampling.ModelSamplingDiscrete, V_PREDICTION_DDPM):
        pass

    node = extra("nodes_model_advanced", "ModelSamplingDiscrete")
    (scaled,) = bench.host.run(node, model=bench.plain, sampling="v_prediction", zsnr=True)
    raw = bench.plain.clone()
    raw.add_object_patch("model_sampling", CogVideoX(raw.model.model_config, zsnr=True))
    facts: Facts = {}
    for gamma in (1.0, 0.4, 0.0):
        for denoise in (1.0, 0.7):
            given = {"latent": {"samples": frames(2)}, "gamma": gamma, "denoise": denoise}
            facts[f"{gamma} {denoise}"] = [
                largest(latent(bench, raw, node, **given)["samples"], latent(bench, scaled, node, **given)["samples"])
                for node in ("LCMLoRA_Sampler", "LCMLoRA_StreamBatch")
            ]
    facts["staged"] = largest(staged(bench, empty(1), model=raw), latent(bench, raw)["samples"])
    mask = torch.ones(1, 64, 64)
    mask[:, :, :32] = 0
    masked = {"latent": {"samples": frames(1), "noise_mask": mask}, "denoise": 0.7}
    made = latent(bench, raw, **masked)["samples"]
    facts["mask"] = largest(made, latent(bench, scaled, **masked)["samples"])
    facts["mask staged"] = largest(staged(bench, masked["latent"], model=raw, denoise=0.7), made)
    return facts


def core_patch(bench: Bench) -> Facts:
    """Models that went through core's ModelSamplingDiscrete with `lcm`, against those that did not."""

    def patched(sampling: str, zsnr: bool):
        node = extra("nodes_model_advanced", "ModelSamplingDiscrete")
        return bench.host.run(node, model=bench.model, sampling=sampling, zsnr=zsnr)[0]

    def made(model) -> Tensor:
        return latent(bench, model)["samples"]

    facts: Facts = {
        "noise": largest(made(patched("lcm", False)), made(bench.model)),
        "zero terminal SNR": largest(made(patched("lcm", True)), made(patched("eps", True))),
        "of another": largest(made(patched("lcm", True)), made(bench.model)),
    }
    other = patched("lcm", False)
    sampling = other.get_model_object("model_sampling")
    sampling.set_sigmas(sampling.sigmas * 1.1)
    watched = Watched(other)
    made(watched.model)
    facts["other schedule"] = {
        "timesteps": watched.timesteps(),
        "apart": largest(torch.cat([sigma for _, sigma, _ in watched.calls]), sampling.sigmas[[49, 37, 24, 12]]),
        "between": bench.host.run("LCMLoRA_Schedule", model=other, timesteps="999, 749")[0][:2].tolist(),
        "points": sampling.sigmas[[49, 37, 36]].tolist(),
    }
    return facts


CHECKS = (stages, nested, scales, preserved, core_patch)

if __name__ == "__main__":
    bench = Bench(load_host(Path(sys.argv[1]), Path(sys.argv[2])))
    print(json.dumps({check.__name__: check(bench) for check in CHECKS}))
