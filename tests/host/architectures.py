"""A shrunken checkpoint of every architecture through the stock loader and our nodes, in ComfyUI's own Python.

python -m tests.host.architectures COMFYUI FOLDER    makes the checkpoints in FOLDER and writes FOLDER/report.json

Every level of a UNet has the first level's 320 channels; blocks, depths and names are those of the family, and the
weights are random. test_architectures.py runs this and judges the report.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from lcm_core.consistency import consistency_function, multistep_sample
from lcm_core.noise import step_noise
from lcm_core.schedule import NoiseSchedule
from tools.inprocess import Host, load_host, message

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "legacy": False,
    "use_spatial_transformer": True, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 1, 1, 1],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}  # fmt: skip
SD2 = UNET | {"context_dim": 1024, "use_linear_in_transformer": True, "num_head_channels": 64}
XL = UNET | {
    "context_dim": 2048, "use_linear_in_transformer": True, "num_head_channels": 64, "num_classes": "sequential",
    "adm_in_channels": 2816, "num_res_blocks": [2, 2, 2], "channel_mult": [1, 1, 1],
}  # fmt: skip
SDXL = XL | {
    "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
}  # fmt: skip
SSD1B = XL | {
    "transformer_depth": [0, 0, 2, 2, 4, 4], "transformer_depth_middle": -1,
    "transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4],
}  # fmt: skip
UNETS = {
    "sd15": UNET | {"context_dim": 768, "num_heads": 8},
    "sd2": SD2,
    "sd2_v": SD2,
    "sdxl": SDXL,
    "ssd1b": SSD1B,
}
MMDIT = {
    "input_size": None, "in_channels": 16, "depth": 2, "num_patches": 64, "pos_embed_max_size": 8,
    "adm_in_channels": 64,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 96, "out_features": 128}},
}  # fmt: skip
WIDTHS = {family: config["context_dim"] for family, config in UNETS.items()} | {"sd3": 96}
POOLED = {"sdxl": 1280, "ssd1b": 1280, "sd3": 64}
SD2_V_MARK = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"  # std > 0.09 means v
SCHEDULE = NoiseSchedule.scaled_linear()
SEED = 5


def network(family: str) -> torch.nn.Module:
    """The host's own network of a family, without storage."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules import mmdit, openaimodel

    place = {"device": "meta", "dtype": torch.float16, "operations": comfy.ops.disable_weight_init}
    if family == "sd3":
        return mmdit.OpenAISignatureMMDITWrapper(**MMDIT, **place)
    return openaimodel.UNetModel(**UNETS[family], **place)


def write_checkpoint(family: str, path: Path, noise: Tensor) -> None:
    """Random weights of variance 1/fan-in, all cut from one `noise` (n,)."""
    state = {}
    for i, (name, weight) in enumerate(network(family).state_dict().items()):
        count = weight.numel()
        start = i * 997 % (len(noise) - count)
        values = noise[start : start + count].view(weight.shape)
        if weight.ndim > 1:
            values = values * (count / len(weight)) ** -0.5
        else:
            values = values * 0.02 + name.endswith("weight")
        state[f"model.diffusion_model.{name}"] = values
    if family == "sd2_v":
        state[SD2_V_MARK] = 0.2 * noise[: len(state[SD2_V_MARK])]
    save_file(state, path)


class Evaluation(NamedTuple):
    """What went into the network and came out of it, and what the host's model made of it."""

    sigma: float
    t: float
    x: Tensor
    output: Tensor
    denoised: Tensor


def record(model: Any, sample: Callable[[Any], Any]) -> tuple[Any, list[Evaluation]]:
    """The result of sample(model), and every evaluation of the model in it."""
    calls, evaluations = [], []

    def wrapper(apply_model, call):
        denoised = apply_model(call["input"], call["timestep"], **call["c"])
        (x, t), output = calls.pop()
        evaluations.append(Evaluation(call["timestep"][0].item(), t[0].item(), x, output, denoised))
        return denoised

    watched = model.clone()
    watched.set_model_unet_function_wrapper(wrapper)
    hook = model.model.diffusion_model.register_forward_hook(lambda _, inputs, output: calls.append((inputs, output)))
    result = sample(watched)
    hook.remove()
    return result, evaluations


RULES = {
    "EPS": lambda e: consistency_function(e.output, e.x, e.t, SCHEDULE, "epsilon"),
    "V_PREDICTION": lambda e: consistency_function(e.output, e.x, e.t, SCHEDULE, "v_prediction"),
    "FLOW": lambda e: e.x - e.sigma * e.output,
}


def apart_from_lcm_core(
    model: Any, clean: Tensor, samples: Tensor, evaluations: list[Evaluation], gamma: float
) -> list[float]:
    """|x − x by hand| of each evaluation of a flow model, and of the samples: multistep_sample over (1 − σ, σ) that
    starts at the LATENT `clean` and is given the evaluations' f_θ."""
    import comfy.sample

    levels, denoised, xs = [e.sigma for e in evaluations], iter(evaluations), []
    places = [round(100_000 * sigma / (3 - 2 * sigma)) for sigma in levels]  # of the range, before SD3's shift of 3
    noise = comfy.sample.prepare_noise(clean, SEED)
    last = multistep_sample(
        lambda x, sigma: next(denoised).denoised,
        (1 - levels[0]) * model.model.process_latent_in(clean) + levels[0] * noise,
        levels,
        lambda sigma: (1 - sigma, sigma),
        noise=lambda i: step_noise(clean.shape, SEED, places[i + 1]),
        gamma=gamma,
        callback=lambda i, sigma, x, x0: xs.append(x),
    )
    theirs = [*(e.x for e in evaluations), samples]
    ours = [*xs, model.model.process_latent_out(last)]
    return [(a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True)]


def examine(host: Host, family: str, checkpoint: str) -> dict[str, Any]:
    """What the loader makes of a checkpoint, and our nodes of the model.

    Errors are the largest |denoised − f_θ| of the evaluations, for f_θ by each rule that the family could be under.
    """
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    model, clip, _ = host.run("CheckpointLoaderSimple", ckpt_name=checkpoint)
    sampling = type(model.get_model_object("model_sampling"))
    rules = ["FLOW"] if family == "sd3" else ["EPS", "V_PREDICTION"]
    generator = torch.Generator().manual_seed(SEED)
    words = torch.randn(1, 77, WIDTHS[family], generator=generator)
    conditioning = [[words, {"pooled_output": torch.randn(1, POOLED.get(family, 1), generator=generator)}]]
    latent = {"samples": 5 * torch.randn(2, model.model.latent_format.latent_channels, 8, 8, generator=generator)}
    common = {"positive": conditioning, "negative": conditioning, "seed": SEED, "cfg": 1.0}

    def stock(model, **inputs):
        return host.run("KSampler", model=model, latent_image=latent, steps=1, **common, **inputs)[0]["samples"]

    def ours(model, **inputs):
        return host.run("LCMLoRA_Sampler", model=model, latent=latent, **common, **inputs)[0]["samples"]

    def errors(evaluations):
        return {rule: max((RULES[rule](e) - e.denoised).abs().max().item() for e in evaluations) for rule in rules}

    def flow(gamma, denoise):
        samples, evaluations = record(patched, lambda m: ours(m, steps=4, gamma=gamma, denoise=denoise))
        return {
            "finite": bool(samples.isfinite().all()),
            "timesteps": [e.t for e in evaluations],
            "sigmas": [e.sigma for e in evaluations],
            "error": errors(evaluations)["FLOW"],
            "apart": apart_from_lcm_core(patched, latent["samples"], samples, evaluations, gamma),
        }

    nearly_clean = {"sampler_name": "euler", "scheduler": "normal", "denoise": 0.001}
    before = stock(model, **nearly_clean)
    (patched,) = host.run("LCMLoRA_ModelSampling", model=model)
    (sigmas,) = host.run("LCMLoRA_Schedule", model=patched, steps=4)
    samples, evaluations = record(patched, lambda m: ours(m, steps=4))
    _, last_timesteps = record(patched, lambda m: ours(m, steps=2, original_steps=1000, denoise=0.002))
    after = stock(model, **nearly_clean)
    report = {
        "config": type(model.model.model_config).__name__,
        "model_type": model.model.model_type.name,
        "has_clip": clip is not None,
        "finite": bool(samples.isfinite().all()),
        "shape": list(samples.shape),
        "timesteps": [e.t for e in evaluations],
        "on_schedule": sigmas.tolist() == [*(e.sigma for e in evaluations), 0],
        "errors": errors(evaluations),
        "last_errors": errors(last_timesteps),
        "left_alone": type(model.get_model_object("model_sampling")) is sampling and torch.equal(before, after),
    }
    if family == "sd3":
        report["flow"] = {"gamma 0.3": flow(0.3, 1.0), "denoise 0.7": flow(1.0, 0.7)}
    else:
        (distilled,) = host.run(ModelSamplingDiscrete, model=model, sampling="lcm")
        _, first = record(distilled, lambda m: stock(m, sampler_name="lcm", scheduler="simple"))
        report["core_errors"] = errors(first)
        _, taken_over = record(distilled, lambda m: ours(m, steps=4))
        report["taken_over"] = errors(taken_over)
        sampling = distilled.get_model_object("model_sampling")
        sampling.set_sigmas(1.1 * sampling.sigmas)
        report["other_schedule"] = message(lambda: ours(distilled, steps=1))
    return report


def main() -> None:
    comfyui, folder = map(Path, sys.argv[1:])
    checkpoints = folder / "models" / "checkpoints"
    checkpoints.mkdir(parents=True)
    host = load_host(comfyui, folder)
    noise = torch.randn(2**22, generator=torch.Generator().manual_seed(SEED)).half()
    report = {}
    for family in (*UNETS, "sd3"):
        name = f"{family}.safetensors"
        write_checkpoint(family, checkpoints / name, noise)
        report[family] = examine(host, family, name)
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
