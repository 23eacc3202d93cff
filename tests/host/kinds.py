"""Models of every kind of model sampling, in parts and in a stream, in ComfyUI's own Python.

python -m tests.host.kinds COMFYUI FOLDER    writes FOLDER/report.json

test_kinds.py runs this and judges the report; sampler_table.py holds the same models against core's samplers.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.host.sampler_models import ROWS, SEED, Row, build, there
from tools.inprocess import PACK, Host, load_host, message

NAMES = (
    "Stable Video Diffusion", "Stable Cascade, stage C", "Stable Audio", "Cosmos", "Cosmos Predict2", "Flux.1",
)  # fmt: skip
FLOWS = ("Flux.1", "Qwen-Image", "AuraFlow", "Lumina 2", "Wan 2.1 T2V", "MiniMax-H3, picture and sound")


def extra(module: str, name: str) -> type:
    return getattr(importlib.import_module(f"comfy_extras.{module}"), name)


def largest(a: Tensor, b: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


def examine(host: Host, row: Row) -> dict[str, Any]:
    """Parts of a run against the whole, and what is made of written timesteps and of a stream."""
    model = build(row)
    g = torch.Generator().manual_seed(SEED)
    conditioning = [
        [torch.randn(1, 4, row.words, generator=g), {"pooled_output": torch.randn(1, row.pooled, generator=g)}]
    ]
    prompts = {"positive": conditioning, "negative": conditioning, "cfg": 1.0}
    empty = {"samples": torch.zeros(2, *row.shapes[0])}
    (patched,) = host.run("LCMLoRA_ModelSampling", model=model)
    (sigmas,) = host.run("LCMLoRA_Schedule", model=model)

    def custom(gamma: float, given: Tensor, latent: dict, add_noise: bool) -> dict:
        return host.run(
            extra("nodes_custom_sampler", "SamplerCustom"), model=patched, add_noise=add_noise, noise_seed=SEED,
            sampler=host.run("LCMLoRA_SamplerSelect", gamma=gamma)[0], sigmas=given, latent_image=latent, **prompts,
        )[0]  # fmt: skip

    def ours(gamma: float = 1.0, latent: dict = empty, node: str = "LCMLoRA_Sampler", **inputs) -> dict:
        return host.run(node, model=model, latent=latent, seed=SEED, gamma=gamma, **prompts, **inputs)[0]

    whole = {gamma: ours(gamma)["samples"] for gamma in (1.0, 0.3, 0.0)}
    high, low = host.run(extra("nodes_custom_sampler", "SplitSigmas"), sigmas=sigmas, step=2)
    halves, stages = [], []
    for gamma, made in whole.items():
        halves.append(largest(custom(gamma, low, custom(gamma, high, empty, True), False)["samples"], made))
        first = ours(gamma, end_at_step=2, return_with_leftover_noise=True)
        stages.append(largest(ours(gamma, first, start_at_step=2, add_noise=False)["samples"], made))
    written = host.run("LCMLoRA_Schedule", model=model, timesteps="999, 759, 499, 259")[0]
    return {
        "sampling": [base.__name__ for base in type(model.get_model_object("model_sampling")).__bases__],
        "apart": largest(whole[0.3], whole[1.0]),
        "halves": halves,
        "stages": stages,
        "written": torch.equal(written, sigmas),
        "stream": message(lambda: ours(node="LCMLoRA_StreamBatch")),
        "table": len(model.get_model_object("model_sampling").sigmas),
    }


def reshifted(row: Row) -> dict[str, list]:
    """What else than its shift a flow's sampling has, before a shift of 4.5 and after it."""
    levels = importlib.import_module(f"{PACK}.nodes.host.levels")
    model = build(row)
    samplings = [each.get_model_object("model_sampling") for each in (model, levels.with_shift(model, 4.5))]
    return {
        "shifts": [levels.flow_of(each).shift for each in samplings],
        "others": [
            {name: value for name, value in vars(each).items() if name != "shift" and isinstance(value, float | int)}
            for each in samplings
        ],
    }


def main() -> None:
    comfyui, folder = map(Path, sys.argv[1:])
    host = load_host(comfyui, folder)
    report = {
        "kinds": {name: examine(host, ROWS[name]) for name in NAMES},
        "shifts": {name: reshifted(row) for name in FLOWS if there(row := ROWS[name])},
    }
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
