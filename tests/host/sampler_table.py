"""LCM Sampler against core's `lcm` and `euler` on every architecture, in ComfyUI's own Python.

python -m tests.host.sampler_table COMFYUI FOLDER [ROW ...]    writes FOLDER/report.json

A cell is the largest difference of the samples, as a share of the largest value; core has the same sigmas and noises.
tools/architecture_table.py writes reports as the table in docs/architectures.md.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lcm_core.noise import step_noise
from tests.host.sampler_models import CELLS, ROWS, SEED, Row, build, there, write_lora
from tools.inprocess import Host, load_host, message

STRENGTH = 0.5
TIMESTEPS = {1.0: (999, 759, 499, 259), STRENGTH: (499, 379, 259, 139)}  # of the LCM grid in 4 steps
LATER = 2**31 + 8  # a seed beside SEED


@dataclass(frozen=True)
class Way:
    """What LCM Sampler is told, and which of core's samplers makes the same."""

    inputs: tuple[tuple[str, Any], ...]
    core: str


FOUR_STEPS = (("steps", 4), ("cfg", 1.0))
CONSISTENCY = Way((*FOUR_STEPS, ("grid", "lcm"), ("gamma", 1.0)), "lcm")
DETERMINISTIC = Way((*FOUR_STEPS, ("grid", "lcm"), ("gamma", 0.0)), "euler")
TRAILING = Way((*FOUR_STEPS, ("grid", "trailing"), ("gamma", 0.0)), "euler")
AUTO = Way((), "euler")  # of a recipe with γ = 0


@dataclass(frozen=True)
class Run:
    """What is sampled: an empty latent or the row's picture, its left half or all of it, from which noise."""

    batch: int = 1
    picture: bool = False
    masked: bool = False
    seed: int = SEED
    seeds: tuple[int, ...] = ()
    indices: tuple[int, ...] = ()

    @property
    def denoise(self) -> float:
        return STRENGTH if self.picture else 1.0


@dataclass(frozen=True)
class Stage:
    """The steps that one maker makes of all."""

    expert: int
    start: int
    end: int
    steps: int


def extra(module: str, name: str) -> type:
    return getattr(importlib.import_module(f"comfy_extras.nodes_{module}"), name)


def parts(samples: Any) -> list[Tensor]:
    return samples.unbind() if samples.is_nested else [samples]


def joined(each: Sequence[Tensor]) -> Any:
    return each[0] if len(each) == 1 else importlib.import_module("comfy.nested_tensor").NestedTensor(list(each))


def of_image(samples: Any, i: int) -> Any:
    return joined([part[i : i + 1] for part in parts(samples)])


def apart(a: Any, b: Any) -> float:
    """The largest difference, as a share of the largest value; infinity if one is not finite or of another shape."""
    pairs = list(zip(parts(a), parts(b), strict=True))
    if any(x.shape != y.shape or not (x.isfinite() & y.isfinite()).all() for x, y in pairs):
        return math.inf
    return max(((x - y).abs().max() / y.abs().max()).item() for x, y in pairs)


class Case:
    """A row's models, as LCM Sampler and as core's samplers take them, and both on them."""

    def __init__(self, host: Host, row: Row, folder: Path) -> None:
        self.host, self.row = host, row
        generator = torch.Generator().manual_seed(SEED)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        conditions = {name: drawn(*v) if isinstance(v, tuple) else v for name, v in row.conditions.items()}
        positive = [[drawn(1, 4, row.words), {"pooled_output": drawn(1, row.pooled)} | conditions]]
        self.prompts = {"positive": positive, "negative": positive}
        self.picture = [drawn(2, *shape) for shape in row.shapes]
        self.ours_on = self.cores_on = [build(row, SEED + i) for i in range(row.experts)]
        self.steps, self.ways = 4, (CONSISTENCY, DETERMINISTIC)
        if given := row.accelerated:
            files = [
                write_lora(folder, name, given.layer, model)
                for name, model in zip(given.files, self.ours_on, strict=True)
            ]
            loaded = [
                host.run("LoraLoaderModelOnly", model=model, lora_name=file, strength_model=1.0)[0]
                for model, file in zip(self.cores_on, files, strict=True)
            ]
            shifted = extra("model_advanced", given.node)
            self.cores_on = [host.run(shifted, model=model, shift=given.shift)[0] for model in loaded]
            self.ours_on = [
                host.run("LCMLoRA_Loader", model=model, lora_name=file)[0]
                for model, file in zip(self.ours_on, files, strict=True)
            ]
            self.steps, self.ways = given.steps, (AUTO,)
            return
        if row.core_as_v:
            scaled = extra("model_advanced", "ModelSamplingDiscrete")
            v = {"sampling": "v_prediction", "zsnr": True}
            self.cores_on = [host.run(scaled, model=model, **v)[0] for model in self.cores_on]
        if not row.refuses:
            self.cores_on = [host.run("LCMLoRA_ModelSampling", model=model)[0] for model in self.cores_on]

    def latent(self, run: Run) -> dict[str, Any]:
        latent = {"samples": joined([float(run.picture) * part[: run.batch] for part in self.picture])}
        if run.masked:
            latent["noise_mask"] = joined(self.halves())
        return latent | ({"batch_index": list(run.indices)} if run.indices else {})

    def halves(self) -> list[Tensor]:
        """A mask of the left half of each part."""
        halves = [torch.zeros(1, 1, *part.shape[2:]) for part in self.picture]
        for half in halves:
            half[..., : half.shape[-1] // 2] = 1
        return halves

    @cache  # noqa: B019 - a case lives as long as its row
    def made(self, way: Way, run: Run, makers: tuple[str, ...]) -> Any:
        """The samples of one maker after another, each with an equal share of the steps."""
        steps, latent = len(self.sigmas(way, run.denoise)) - 1, self.latent(run)
        ends = [round(steps * i / len(makers)) for i in range(len(makers) + 1)]
        for i, maker in enumerate(makers):
            stage = Stage(min(i, self.row.experts - 1), ends[i], ends[i + 1], steps)
            latent = getattr(self, maker)(way, run, stage, latent)
        return latent["samples"]

    def whole(self, way: Way, run: Run, maker: str) -> Any:
        """The samples of one maker, with a stage for each expert."""
        return self.made(way, run, (maker,) * self.row.experts)

    def ours(self, way: Way, run: Run, stage: Stage, latent: dict) -> dict:
        """LCM Sampler."""
        return self.host.run(
            "LCMLoRA_Sampler", model=self.ours_on[stage.expert], latent=latent, seed=run.seed,
            seeds=", ".join(map(str, run.seeds)),
            denoise=run.denoise, start_at_step=stage.start, end_at_step=stage.end, add_noise=stage.start == 0,
            return_with_leftover_noise=stage.end < stage.steps, **self.prompts | dict(way.inputs),
        )[0]  # fmt: skip

    def core(self, way: Way, run: Run, stage: Stage, latent: dict) -> dict:
        """Core's SamplerCustom."""
        sigmas, whole = self.sigmas(way, run.denoise), stage.end - stage.start == stage.steps
        return self.host.run(
            extra("custom_sampler", "SamplerCustom"),
            model=self.both(sigmas) if whole else self.cores_on[stage.expert], add_noise=stage.start == 0,
            noise_seed=run.seed, cfg=1.0, sampler=self.sampler(way, run), latent_image=latent,
            sigmas=sigmas[stage.start : stage.end + 1], **self.prompts,
        )[0]  # fmt: skip

    def both(self, sigmas: Tensor) -> Any:
        """Two experts as one MODEL, the second from the middle of the sigmas on; of one expert its own."""
        first, last = self.cores_on[0], self.cores_on[-1]
        if first is last:
            return first
        middle = sigmas[len(sigmas) // 2].item()
        importlib.import_module("comfy.model_management").load_models_gpu([last])

        def evaluate(apply_model, call):
            expert = last.model.apply_model if call["timestep"][0].item() <= middle else apply_model
            return expert(call["input"], call["timestep"], **call["c"])

        model = first.clone()
        model.set_model_unet_function_wrapper(evaluate)
        return model

    def ksampler(self, way: Way, run: Run, stage: Stage, latent: dict) -> dict:
        """Core's KSamplerAdvanced with its own `simple` sigmas."""
        switch = {False: "disable", True: "enable"}
        return self.host.run(
            "KSamplerAdvanced", model=self.cores_on[stage.expert], add_noise=switch[stage.start == 0],
            noise_seed=run.seed, steps=self.steps, cfg=1.0, sampler_name=way.core, scheduler="simple",
            latent_image=latent, start_at_step=stage.start, end_at_step=stage.end,
            return_with_leftover_noise=switch[stage.end < stage.steps], **self.prompts,
        )[0]  # fmt: skip

    def sigmas(self, way: Way, denoise: float) -> Tensor:
        """What core gets: LCM Schedule's on the LCM grid, and else its own `simple` ones, as many as are left."""
        if ("grid", "lcm") in way.inputs:
            return self.host.run("LCMLoRA_Schedule", model=self.cores_on[0], steps=self.steps, denoise=denoise)[0]
        simple = {"model": self.cores_on[0], "scheduler": "simple", "steps": self.steps, "denoise": 1.0}
        (sigmas,) = self.host.run(extra("custom_sampler", "BasicScheduler"), **simple)
        return sigmas[self.steps - int(self.steps * denoise) :]

    def sampler(self, way: Way, run: Run) -> Any:
        """Core's sampler; `lcm` with the noise of our steps, outside of a mask too."""
        samplers, sampling = (importlib.import_module(f"comfy.{name}") for name in ("samplers", "k_diffusion.sampling"))
        if way.core != "lcm":
            return samplers.sampler_object(way.core)
        levels = zip(self.sigmas(way, run.denoise).tolist(), (*TIMESTEPS[run.denoise], -1), strict=True)
        places = {sigma: round(100 * (timestep + 1)) for sigma, timestep in levels}

        def lcm(model, x, sigmas, extra_args=None, callback=None, disable=None):
            def noise(before, after):
                made = step_noise(x.shape, run.seed, places[float(after)])
                if (extra_args or {}).get("denoise_mask") is not None:
                    model.noise = made
                return made

            return sampling.sample_lcm(model, x, sigmas, extra_args, callback, disable, noise_sampler=noise)

        return samplers.KSAMPLER(lcm)

    def against(self, run: Run, way: Way) -> float:
        """Ours from core's. Core's second stage takes noise for what is outside of a mask, so there it has only one."""
        core = self.made(way, run, ("core",)) if run.masked else self.whole(way, run, "core")
        return apart(self.whole(way, run, "ours"), core)


def text(case: Case) -> float:
    """From an empty latent; and core's KSampler on its own sigmas."""
    run, way = Run(), AUTO if case.row.accelerated else TRAILING
    simple = apart(case.whole(way, run, "ours"), case.whole(way, run, "ksampler"))
    return max(simple, *(case.against(run, way) for way in case.ways))


def image_to_image(case: Case) -> float:
    return max(case.against(Run(picture=True), way) for way in case.ways)


def mask(case: Case) -> float:
    """Inside of a mask; infinity if a value outside is not the latent's."""
    run = Run(picture=True, masked=True)
    kept, given = (parts(samples) for samples in (case.whole(case.ways[0], run, "ours"), case.latent(run)["samples"]))
    outside = [1 - half for half in case.halves()]
    if not all(torch.equal(a * part, b * part) for a, b, part in zip(kept, given, outside, strict=True)):
        return math.inf
    return max(case.against(run, way) for way in case.ways)


def batch(case: Case) -> float:
    """A batch of two; and its second alone, unless the network mixes them."""
    run, way = Run(batch=2), case.ways[0]
    found = [case.against(run, way)]
    if not case.row.mixes:
        alone = case.whole(way, Run(indices=(1,)), "ours")
        found.append(apart(alone, of_image(case.whole(way, run, "ours"), 1)))
    return max(found)


def seeds(case: Case) -> float:
    """Two images with a seed each, against core's of each seed."""
    way, each = case.ways[0], (SEED, LATER)
    both = case.whole(way, Run(batch=2, seeds=each), "ours")
    return max(apart(of_image(both, i), case.whole(way, Run(seed=seed), "core")) for i, seed in enumerate(each))


def split(case: Case) -> float:
    """Two stages: both ours, and one ours and one core's; against core's run, or its two stages of two experts."""
    stages = [("ours", "ours"), ("ours", "core"), ("core", "ours")]
    return max(
        apart(case.made(way, Run(), makers), case.whole(way, Run(), "core")) for way in case.ways for makers in stages
    )


MADE_BY = dict(zip(CELLS, (text, image_to_image, mask, batch, seeds, split), strict=True))


def examine(host: Host, row: Row, folder: Path) -> dict[str, float | str]:
    """Each cell's difference, or what the refusal says, or the error that core stops with on its own."""
    case, found = Case(host, row, folder), {}
    for name, cell in MADE_BY.items():
        if name in row.fails:
            case.ours = case.core
            found[name] = error_of(partial(cell, case))
            del case.ours
        elif name != "seeds" or not row.mixes:
            found[name] = message(partial(cell, case)) if name in row.refuses else cell(case)
    return found


def error_of(act: Callable[[], object]) -> str:
    """What the host's error says."""
    try:
        act()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return "no error"


def main() -> None:
    comfyui, folder = map(Path, sys.argv[1:3])
    host = load_host(comfyui, folder)
    version = importlib.import_module("comfyui_version").__version__
    report: dict[str, Any] = {"version": version, "rows": {}, "seconds": {}}
    for name in sys.argv[3:] or ROWS:
        if there(ROWS[name]):
            start = time.perf_counter()
            report["rows"][name] = examine(host, ROWS[name], folder)
            report["seconds"][name] = time.perf_counter() - start
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
