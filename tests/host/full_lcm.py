"""A full LCM through the stock loader, Full LCM Guidance and LCM Sampler, in ComfyUI's own Python.

python -m tests.host.full_lcm COMFYUI FOLDER

test_full_lcm.py makes FOLDER, the host's base folder, with job.json and the UNet in diffusers' names, and judges the
results.safetensors and report.json that this writes there. Only that side needs diffusers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tools.inprocess import Host, load_host

BLOCKS = {
    "num_res_blocks": [1, 1], "channel_mult": [1, 1], "transformer_depth": [1, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 0, 0],
}  # fmt: skip


def write_checkpoints(models: Path) -> None:
    """single.safetensors, the UNet under the host's own names and cond_proj's, and one with no cond_proj in it."""
    import comfy.utils

    names = comfy.utils.unet_to_diffusers(BLOCKS) | {"time_embedding.cond_proj.weight": "time_embed.cond_proj.weight"}
    unet = load_file(models / "diffusion_models" / "unet.safetensors")
    state = {f"model.diffusion_model.{names[name]}": weight for name, weight in unet.items()}
    checkpoints = models / "checkpoints"
    checkpoints.mkdir()
    save_file(state, checkpoints / "single.safetensors")
    embed = "model.diffusion_model.time_embed.0.weight"
    save_file({embed: state[embed]}, checkpoints / "without.safetensors")


def sample(host: Host, model: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The LCM Sampler's samples, and every call of the network stacked: its x, t and context, and its output."""
    calls: dict[str, list[Tensor]] = {"x": [], "t": [], "context": [], "output": []}

    def keep(_, args, kwargs, output):
        for kept, value in zip(calls.values(), (*args[:2], kwargs["context"], output), strict=True):
            kept.append(value.clone())

    hook = model.model.diffusion_model.register_forward_hook(keep, with_kwargs=True)
    (latent,) = host.run("LCMLoRA_Sampler", model=model, **inputs)
    hook.remove()
    return {name: torch.stack(kept) for name, kept in calls.items()} | {"samples": latent["samples"]}


def main() -> None:
    comfyui, folder = map(Path, sys.argv[1:])
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    host = load_host(comfyui, folder)
    write_checkpoints(folder / "models")
    model, _, _ = host.run("CheckpointLoaderSimple", ckpt_name="single.safetensors")
    words = torch.randn(2, 1, 77, 768, generator=torch.Generator().manual_seed(job["seed"]))
    positive, negative = ([[rows, {}]] for rows in words)
    common = {"positive": positive, "negative": negative, "seed": job["seed"]}
    results = {}
    for name, (guidance, cfg) in job["runs"].items():
        patched = model
        for inputs in guidance:
            (patched,) = host.run("LCMLoRA_GuidanceEmbedding", model=patched, **inputs)
        latent = {"samples": torch.zeros(job["shape"])}
        found = sample(host, patched, {**common, "latent": latent, "cfg": cfg})
        results |= {f"{name}/{key}": value.contiguous() for key, value in found.items()}
    save_file(results, folder / "results.safetensors")
    report = {
        "config": type(model.model.model_config).__name__,
        "files": host.pack.nodes.host.files.full_lcm_files(),
        "time_embed": type(model.get_model_object("diffusion_model.time_embed")).__name__,
        "patches": list(model.object_patches),
    }
    try:
        host.run("LCMLoRA_GuidanceEmbedding", model=model, file="without.safetensors")
    except ValueError as error:
        report["error"] = str(error)
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
