"""Distillation of shrunken flow models inside the host's process: prints facts as JSON, a key a network.

python tests/host/flow_training.py COMFYUI BASE
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[2]))

from lcm_core.lora import LoRAVector  # noqa: E402
from tests.host.shrunken import ARCHITECTURES, build, there  # noqa: E402
from tools.inprocess import PACK, load_host  # noqa: E402

# Network -> (width of its context, of its pooled output, what its shift is).
NETWORKS = {
    "Stable Diffusion 3": (96, 64, 3.0),
    "Flux.1": (64, 48, 1.15),
    "Lumina 2": (48, None, 6.0),
    "Z-Image": (48, None, 3.0),
    "Qwen-Image": (48, None, 1.15),
    "Wan 2.1 T2V": (48, None, 8.0),
}
OF_ONE = ("Lumina 2", "Z-Image")  # whose networks count time from 0 to 1
OF_VIDEOS = ("Qwen-Image", "Wan 2.1 T2V")  # whose latents have frames
ARCHITECTURES["Z-Image"][1].update(dim=256, n_heads=2, n_kv_heads=2)  # the least that its modulation works with
GUIDANCE = 2.0  # of Flux' embedding
SETTINGS = {"steps": 2, "rank": 4, "batch_size": 2, "preview_every": 1, "learning_rate": 1e-3, "state_prefix": ""}


def model_of(name: str):
    """A shrunken MODEL with a shift of its own and, of Wan, latents of videos."""
    model, shift = build(name), NETWORKS[name][2]
    model.model.model_sampling.set_parameters(shift=shift, **({"multiplier": 1.0} if name in OF_ONE else {}))
    if name in OF_VIDEOS:
        model.model.latent_format = importlib.import_module("comfy.latent_formats").Wan21()
    for key, buffer in model.model.diffusion_model.named_buffers():
        if key == "pos_embed":
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=torch.Generator().manual_seed(1)))
    return model


def prompt(name: str, seed: int, tokens: int) -> list:
    width, pooled, _ = NETWORKS[name]
    generator = torch.Generator().manual_seed(seed)
    options = {} if pooled is None else {"pooled_output": torch.randn(1, pooled, generator=generator)}
    if name.startswith("Flux"):
        options["guidance"] = GUIDANCE
    return [[torch.randn(1, tokens, width, generator=generator), options]]


def host_velocity(model, x: Tensor, sigma: Tensor, entry: list, latent: Tensor) -> Tensor:
    """(x − x̂₀)/σ by the host's own call of the model."""
    cond = importlib.import_module("comfy.sampler_helpers").convert_cond(entry)
    samplers = importlib.import_module("comfy.samplers")
    (cond,) = samplers.encode_model_conds(model.model.extra_conds, cond, latent[None], model.load_device, "positive")
    given = {key: value.process_cond(len(x)).cond for key, value in cond["model_conds"].items()}
    denoised = model.model.apply_model(x, sigma, **given)
    return (x - denoised) / sigma.reshape(-1, *[1] * (x.ndim - 1))


def facts_of(name: str, host, training) -> dict:
    model = model_of(name)
    generator = torch.Generator().manual_seed(5)
    size = (16, 3, 8, 8) if name.startswith("Wan") else (16, 1, 8, 8) if name in OF_VIDEOS else (16, 8, 8)
    latents = torch.randn(2, *size, generator=generator)
    positive, negative = [prompt(name, seed, tokens) for seed, tokens in ((1, 7), (2, 7))], prompt(name, 3, 5)
    schedule, prediction = training.noise_process(model)
    with training.trainable(model) as network:
        given = training.conditions(model, [*positive[0], *positive[1]], negative, latents[0])
        call = training.as_model(model, network, given)
        apart = []
        for row, entry in zip(given.rows, [*positive, negative], strict=True):
            x, sigma = torch.randn(1, *size, generator=generator), torch.tensor([0.7])
            with torch.no_grad():
                ours = call(x, sigma, tuple(tensor[None] for tensor in row), None)
                theirs = host_velocity(model, x, sigma, entry, latents[0])
            apart.append(float((ours - theirs).norm() / theirs.norm()))
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    previews = []
    utils = sys.modules["comfy.utils"]
    utils.set_progress_bar_global_hook(lambda done, total, preview, **_: previews.append(bool(preview)))
    own = name.startswith("Flux")  # its guidance is an input
    omega = {"omega_min": 0.0, "omega_max": 0.0} if own else {"omega_min": 1.0, "omega_max": 3.0}
    asked = SETTINGS | omega | {"seed": 0, "links": 10, "solver": "heun", "gradient_checkpointing": False}
    asked |= {"precision": "model", "save_every": 100}
    lists = {"model": [model], "positive": positive, "latents": [{"samples": latents}]}
    if not own:
        lists["negative"] = [negative]
    declared = host.classes["LCMLoRA_Distill"].INPUT_TYPES()["optional"]
    asked |= {key: spec[1]["default"] for key, spec in declared.items() if "default" in dict(*spec[1:])}

    def distilled(lists: dict, **changes) -> tuple:
        given = {key: [value] for key, value in (asked | changes).items()}
        return host.run("LCMLoRA_Distill", **given, **lists)

    results = {}
    with_less_memory = LoRAVector.from_state_dict(distilled(lists, gradient_checkpointing=True)[0])
    for objective in ("lcd", "pcm"):
        lora, _, report = distilled(lists, objective=objective)
        results[objective] = LoRAVector.from_state_dict(lora)
    vector = results["lcd"]
    utils.set_progress_bar_global_hook(None)
    patched = host.run("LCMLoRA_ApplyVector", model=model, lora=lora)[0]
    try:
        unguided = {key: value for key, value in lists.items() if key != "negative"}
        distilled(unguided, omega_min=1.0, omega_max=2.0)
        refused = "no error"
    except ValueError as error:
        refused = str(error)
    return {
        "shift": schedule.flow.shift,
        "prediction": prediction,
        "apart": max(apart),
        "norm": vector.norm(),
        "other": (vector - results["pcm"]).norm(),
        "checkpointing": (vector - with_less_memory).norm() / vector.norm(),
        "modules": len(vector),
        "patched": len(patched.patches),
        "unchanged": all(torch.equal(before[key], value) for key, value in model.model.state_dict().items()),
        "previews": previews,
        "guidance": "guidance" in training.conditions(model, positive[0], None, latents[0]).names,
        "report": report,
        "refused": refused,
    }


def main() -> None:
    comfyui, base = map(Path, sys.argv[1:])
    host = load_host(comfyui, base)
    settings = sys.modules["comfy.cli_args"]
    sys.modules["comfy.utils"].set_progress_bar_enabled(True)
    settings.args.preview_method = settings.LatentPreviewMethod.Latent2RGB
    training = importlib.import_module(f"{PACK}.nodes.host.training")
    with tempfile.TemporaryDirectory() as folder:
        importlib.import_module("folder_paths").set_output_directory(folder)
        print(json.dumps({name: facts_of(name, host, training) for name in NETWORKS if there(name)}))


if __name__ == "__main__":
    main()
