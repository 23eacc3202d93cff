"""Shrunken models of every kind of model sampling through our nodes and core's, in ComfyUI's own Python.

python -m tests.host.kinds COMFYUI FOLDER    writes FOLDER/report.json

Each is the host's own class of the architecture with random weights. test_kinds.py runs this and judges the report.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lcm_core.noise import step_noise
from tools.inprocess import Host, load_host, message

SEED = 5
WORDS, POOLED = 32, 64


class Kind(NamedTuple):
    """A class of comfy.supported_models, its network's settings, and the shape of its latents."""

    config: str
    network: dict[str, Any]
    shape: tuple[int, ...]


KINDS = {
    "SVD": Kind(
        "SVD_img2vid",
        {
            "image_size": 32, "in_channels": 8, "out_channels": 4, "model_channels": 64, "num_res_blocks": [1],
            "channel_mult": [1], "transformer_depth": [1], "transformer_depth_middle": 1,
            "transformer_depth_output": [1, 1], "use_spatial_transformer": True, "context_dim": WORDS, "legacy": False,
            "num_head_channels": 64, "num_classes": "sequential", "adm_in_channels": 768,
            "use_temporal_attention": True, "use_linear_in_transformer": True, "use_temporal_resblock": True,
            "extra_ff_mix_layer": True, "video_kernel_size": [3, 1, 1], "merge_strategy": "learned_with_images",
        },
        (3, 4, 8, 8),
    ),
    "Stable Cascade": Kind(
        "Stable_Cascade_C",
        {
            "stable_cascade_stage": "c", "c_cond": 32, "c_hidden": [32, 32], "nhead": [2, 2],
            "blocks": [[1, 1], [1, 1]], "c_clip_text": WORDS, "c_clip_text_pooled": POOLED,
        },
        (2, 16, 8, 8),
    ),
    "Stable Audio": Kind(
        "StableAudio",
        {"audio_model": "dit1.0", "embed_dim": 768, "cond_token_dim": 768, "depth": 1, "num_heads": 24},
        (2, 64, 16),
    ),
    "Cosmos": Kind(
        "CosmosT2V",
        {
            "image_model": "cosmos", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
            "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 64, "num_blocks": 2,
            "num_heads": 2, "crossattn_emb_channels": WORDS, "block_config": "FA-CA-MLP", "concat_padding_mask": True,
            "pos_emb_cls": "rope3d", "pos_emb_learnable": False, "use_adaln_lora": True, "adaln_lora_dim": 16,
            "block_x_format": "THWBD", "affline_emb_norm": True, "extra_per_block_abs_pos_emb": True,
            "extra_per_block_abs_pos_emb_type": "learnable",
        },
        (2, 16, 2, 8, 8),
    ),
    "Cosmos-Predict2": Kind(
        "CosmosT2IPredict2",
        {
            "image_model": "cosmos_predict2", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
            "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 64, "num_blocks": 2,
            "num_heads": 2, "crossattn_emb_channels": WORDS, "pos_emb_cls": "rope3d", "pos_emb_learnable": True,
            "use_adaln_lora": True, "adaln_lora_dim": 16,
        },
        (2, 16, 2, 8, 8),
    ),
    "Flux": Kind(
        "Flux",
        {
            "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": POOLED, "context_in_dim": WORDS,
            "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
            "axes_dim": [8, 12, 12], "theta": 10000, "qkv_bias": True, "guidance_embed": True, "patch_size": 2,
            "txt_ids_dims": [],
        },
        (2, 16, 8, 8),
    ),
}  # fmt: skip


def build(kind: Kind) -> Any:
    """A MODEL of a kind, its weights random, of variance 1/fan-in."""
    supported, patcher = (importlib.import_module(f"comfy.{name}") for name in ("supported_models", "model_patcher"))
    embedder = importlib.import_module("comfy.ldm.audio.embedders").NumberConditioner(768, min_val=0, max_val=512)
    seconds = {
        f"conditioner.conditioners.seconds_{end}.{name}": value
        for end in ("start", "total") for name, value in embedder.state_dict().items()
    }  # fmt: skip
    flux = inspect.signature(importlib.import_module("comfy.ldm.flux.model").FluxParams).parameters
    network = {name: value for name, value in kind.network.items() if name != "txt_ids_dims" or name in flux}
    config = getattr(supported, kind.config)(network)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(seconds)
    generator = torch.Generator().manual_seed(SEED)
    for name, weight in model.named_parameters():
        scale = max(1, math.prod(weight.shape[1:])) ** -0.5 if weight.ndim > 1 else 0.02
        noise = scale * torch.randn(weight.shape, generator=generator)
        weight.data = noise + (1.0 if weight.ndim == 1 and name.endswith("weight") else 0.0)
    cpu = torch.device("cpu")
    return patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def extra(module: str, name: str) -> type:
    return getattr(importlib.import_module(f"comfy_extras.{module}"), name)


def largest(a: Tensor, b: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


def place(timestep: float) -> int:
    return round(100 * (timestep + 1))


def examine(host: Host, kind: Kind) -> dict[str, Any]:
    """Our sampler against core's on a model, with the same sigmas, first noise and step noise."""
    samplers, core = (importlib.import_module(f"comfy.{name}") for name in ("samplers", "k_diffusion.sampling"))
    model = build(kind)
    g = torch.Generator().manual_seed(SEED)
    width = 768 if kind.config == "StableAudio" else WORDS
    conditioning = [[torch.randn(1, 4, width, generator=g), {"pooled_output": torch.randn(1, POOLED, generator=g)}]]
    prompts = {"positive": conditioning, "negative": conditioning, "cfg": 1.0}
    empty = {"samples": torch.zeros(kind.shape)}
    sampling = type(model.get_model_object("model_sampling"))
    (patched,) = host.run("LCMLoRA_ModelSampling", model=model)
    (sigmas,) = host.run("LCMLoRA_Schedule", model=model)

    def custom(sampler: Any, given: Tensor = sigmas, latent: dict = empty, add_noise: bool = True) -> dict:
        node = extra("nodes_custom_sampler", "SamplerCustom")
        return host.run(
            node, model=patched, add_noise=add_noise, noise_seed=SEED, sampler=sampler, sigmas=given,
            latent_image=latent, **prompts,
        )[0]  # fmt: skip

    def ours(gamma: float = 1.0, latent: dict = empty, node: str = "LCMLoRA_Sampler", **inputs) -> dict:
        return host.run(node, model=model, latent=latent, seed=SEED, gamma=gamma, **prompts, **inputs)[0]

    places = {sigma: place(t) for sigma, t in zip(sigmas.tolist(), (999, 759, 499, 259, -1), strict=True)}
    lcm = samplers.KSAMPLER(
        core.sample_lcm,
        {"noise_sampler": lambda before, after: step_noise(kind.shape, SEED, places[float(after)])},
    )
    whole = {gamma: ours(gamma)["samples"] for gamma in (1.0, 0.3, 0.0)}
    select: Callable[..., Any] = lambda gamma: host.run("LCMLoRA_SamplerSelect", gamma=gamma)[0]  # noqa: E731
    halves, stages = {}, {}
    for gamma in whole:
        high, low = host.run(extra("nodes_custom_sampler", "SplitSigmas"), sigmas=sigmas, step=2)
        halfway = custom(select(gamma), high)
        halves[gamma] = largest(custom(select(gamma), low, halfway, add_noise=False)["samples"], whole[gamma])
        first = ours(gamma, end_at_step=2, return_with_leftover_noise=True)
        stages[gamma] = largest(ours(gamma, first, start_at_step=2, add_noise=False)["samples"], whole[gamma])
    written = host.run("LCMLoRA_Schedule", model=model, timesteps="999, 759, 499, 259")[0]
    return {
        "sampling": [base.__name__ for base in sampling.__bases__],
        "finite": bool(whole[1.0].isfinite().all()),
        "shape": list(whole[1.0].shape),
        "lcm": largest(whole[1.0], custom(lcm)["samples"]),
        "euler": largest(whole[0.0], custom(samplers.sampler_object("euler"))["samples"]),
        "apart": largest(whole[0.3], whole[1.0]),
        "halves": list(halves.values()),
        "stages": list(stages.values()),
        "written": torch.equal(written, sigmas),
        "stream": message(lambda: ours(node="LCMLoRA_StreamBatch")),
        "table": len(model.get_model_object("model_sampling").sigmas),
    }


def main() -> None:
    comfyui, folder = map(Path, sys.argv[1:])
    host = load_host(comfyui, folder)
    report = {name: examine(host, kind) for name, kind in KINDS.items()}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
