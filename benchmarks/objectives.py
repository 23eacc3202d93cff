"""What each objective of distillation makes of the same compute: few-step quality of the pocket model, as a table.

python benchmarks/objectives.py [--device cuda] [--steps 2000] [--seeds 3] [--jobs 4] [--only lcd tcd] [--json FILE]

Every row is a LoRA on the pocket teacher, trained anew with each seed (of the LoRA's start, the batches and the draws),
and means over the seeds ± their standard error. Compute counts passes of the network: a student's step is three (one
forward, two backward), the guided teacher two, the target one. A row gets the passes of `--steps` steps of LCD, so one
whose step is cheaper makes more of them. The pictures are of the eight categories, from the same noise in every row;
distance is the Fréchet distance of the judge's features to the data, "right" the share that shows what the prompt says.
The first rows are the teacher's, without training: DDIM at the guidance that gives it the lowest distance.

The JSON file has every run as soon as it is measured: the same command goes on where it was stopped, also within a
training. `--jobs` runs so many trainings side by side, which a network as small as this one needs to fill a GPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lcm_core.consistency import consistency_function, multistep_sample, predict_x0  # noqa: E402
from lcm_core.distill import OBJECTIVES, DistillConfig, distill, inject_lora  # noqa: E402
from lcm_core.distill.identity import digest_of, fingerprint  # noqa: E402
from lcm_core.distill.randomness import stream_seed  # noqa: E402
from lcm_core.distill.state import read_losses  # noqa: E402
from lcm_core.guidance import guided  # noqa: E402
from lcm_core.noise import step_noise  # noqa: E402
from lcm_core.schedule import lcm_timesteps, trailing_timesteps  # noqa: E402
from lcm_core.solvers import ddim_sample  # noqa: E402
from pocket import autoencoder, judge  # noqa: E402
from pocket.data import CATEGORIES, STYLES, pictures  # noqa: E402
from pocket.lcm import TARGETS  # noqa: E402
from pocket.teacher import SCHEDULE, Captions, encode_pictures, load_teacher  # noqa: E402

FEW = (1, 2, 4, 8)
GAMMAS = (1.0, 0.3, 0.0)
GUIDANCE = (1.0, 1.25, 1.5, 2.0, 3.0)
NOISE_SEED = 11  # of the pictures
STUDENT, GUIDED_TEACHER, TARGET = 3, 2, 1  # passes of the network
# Row -> what it changes of the settings that all have in common, `common`.
VARIANTS: dict[str, dict[str, Any]] = {
    "lcd": {},
    "lcd, dpm++": {"solver": "dpm++"},
    "lcd, l2": {"distance": "l2"},
    "lcd, huber_norm": {"distance": "huber_norm", "huber_c": 0.00054},
    "lcd, cauchy": {"distance": "cauchy", "huber_c": 0.1},
    "lcd after guided": {"warm_start": 0.1},
    "lcd + diffusion": {"terms": {"diffusion": 1.0}},
    "pcm, 2 phases": {"objective": "pcm", "options": {"phases": 2}},
    "pcm, 4 phases": {"objective": "pcm", "options": {"phases": 4}},
    "tcd": {"objective": "tcd"},
    "ect": {"objective": "ect", "options": {"stage_steps": 0.125}},
    "ect, cauchy": {
        "objective": "ect", "options": {"stage_steps": 0.125}, "distance": "cauchy", "huber_c": 0.1,
    },
    "ect on data": {"objective": "ect", "options": {"stage_steps": 0.125, "on_data": True}},
    "guided": {"objective": "guided"},
    "lcf": {"objective": "lcf"},
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Of a run, as its JSON has them."""

    steps: int
    batch: int
    rank: int
    learning_rate: float
    links: int
    omega: tuple[float, float]
    pictures: int
    device: str
    cache: str


def passes(config: DistillConfig) -> int:
    """Of the network in a step, for each latent."""
    names = [config.objective, *config.terms]
    on_data = config.resolved.get("on_data", False)
    asks = any(OBJECTIVES[name].teacher for name in names) and not on_data
    evaluations = 2 if config.solver != "ddim" else 1
    return STUDENT + asks * GUIDED_TEACHER * evaluations + (config.objective != "guided") * TARGET


def config_of(name: str, seed: int, settings: Settings) -> DistillConfig:
    """The training of a row: as many steps as have the passes of `settings.steps` steps of LCD.

    A share in the place of a number of steps is one of them.
    """
    common = {
        "learning_rate": settings.learning_rate, "links": settings.links, "on_grid": False, "omega": settings.omega,
        "target_decay": 0.95, "warmup": 50, "decay_to": 0.05, "save_every": 500, "seed": seed,
    }  # fmt: skip
    changes = VARIANTS[name]
    ours = {key: value for key, value in changes.items() if key not in ("warm_start", "options")}
    options = dict(changes.get("options", {}))
    whole = DistillConfig(**common, **ours, options={k: v for k, v in options.items() if k != "stage_steps"})
    lcd = STUDENT + GUIDED_TEACHER + TARGET
    warm = round(changes.get("warm_start", 0) * settings.steps)
    left = settings.steps * lcd - warm * (STUDENT + GUIDED_TEACHER)
    steps = round(left / passes(whole)) + warm
    if "stage_steps" in options:
        options["stage_steps"] = max(1, round(options["stage_steps"] * steps))
    return DistillConfig(**common, **ours, options=options, steps=steps, warm_start=warm)


class Data:
    """Latents, contexts of every caption and the teacher, on the device; what judges the pictures, on the CPU."""

    def __init__(self, settings: Settings):
        self.settings, self.device = settings, torch.device(settings.device)
        self.pictures = pictures(STYLES[0], Path(settings.cache))
        self.latents = encode_pictures(self.pictures).to(self.device)
        unet, words = load_teacher()
        self.captions, self.unet = Captions(words), unet.to(self.device)
        known = self.captions.table.flatten(0, -2).unique(dim=0)
        self.rows = {tuple(row): i for i, row in enumerate(known.tolist())}
        with torch.no_grad():
            self.contexts = tuple(c.to(self.device) for c in words(known))
            self.empty = tuple(c.to(self.device) for c in words(words.index([[]])))
            prompts = [[category] for category in CATEGORIES for _ in range(settings.pictures // len(CATEGORIES))]
            self.prompted = tuple(c.to(self.device) for c in words(words.index(prompts)))
        self.prompts = [prompt for (prompt,) in prompts]

    def batch(self, seed: int, step: int) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(z, cond, uncond) of a step, drawn on the CPU."""
        generator = torch.Generator().manual_seed(stream_seed(seed, step, "batch"))
        rows = torch.randint(len(self.latents), (self.settings.batch,), generator=generator)
        index = self.captions.draw(self.pictures, rows, generator).tolist()
        captions = torch.tensor([self.rows[tuple(words)] for words in index], device=self.device)
        z = self.latents[rows.to(self.device)]
        return z, tuple(c[captions] for c in self.contexts), tuple(c.expand(len(z), *c.shape[1:]) for c in self.empty)

    def model(self, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], omega: Tensor | None = None) -> Tensor:
        return self.unet(x, t, *cond)

    @cached_property
    def decode(self) -> nn.Module:
        return autoencoder.load_autoencoder()[1].to(self.device)

    @cached_property
    def judge(self) -> judge.Judge:
        return judge.load_judge()

    @torch.no_grad()
    def scores(self, sample: Callable[[Tensor, tuple[Tensor, ...], range], Tensor]) -> dict[str, float]:
        """Fréchet distance and accuracy of the pictures that sample(noise, cond, indices) makes latents of."""
        features, right = [], []
        for start in range(0, len(self.prompts), 256):
            chosen = range(start, min(start + 256, len(self.prompts)))
            part = slice(chosen.start, chosen.stop)
            x = step_noise((len(chosen), *self.latents.shape[1:]), NOISE_SEED, 0, chosen).to(self.device)
            images = self.decode(sample(x, tuple(c[part] for c in self.prompted), chosen)).clamp(0, 1).cpu()
            features.append(self.judge(images))
            right.append(judge.right(self.judge, images, self.prompts[part]))
        real = load_file(judge.REFERENCE)[STYLES[0]]
        return {
            "distance": judge.frechet_distance(torch.cat(features), real),
            "accuracy": torch.cat(right).float().mean().item(),
        }

    def few_steps(self, steps: int, gamma: float) -> dict[str, float]:
        """Of multistep consistency sampling with what is on the network."""

        def sample(x: Tensor, cond: tuple[Tensor, ...], indices: range) -> Tensor:
            def denoise(x: Tensor, t: float) -> Tensor:
                times = torch.full((len(x),), t, device=x.device)
                return consistency_function(self.model(x, times, cond), x, t, SCHEDULE)

            return multistep_sample(
                denoise, x, lcm_timesteps(steps, original_steps=self.settings.links), SCHEDULE.process, gamma=gamma,
                noise=lambda i: step_noise(x.shape, NOISE_SEED, i + 1, indices).to(x),
            )  # fmt: skip

        return self.scores(sample)

    def teacher(self, steps: int, scale: float) -> dict[str, float]:
        """Of DDIM under guidance."""

        def sample(x: Tensor, cond: tuple[Tensor, ...], indices: range) -> Tensor:
            both = tuple(torch.cat([c, e.expand_as(c)]) for c, e in zip(cond, self.empty, strict=True))

            def denoise(x: Tensor, t: float) -> Tensor:
                times = torch.full((2 * len(x),), t, device=x.device)
                with_cond, without = self.model(torch.cat([x, x]), times, both).chunk(2)
                return predict_x0(guided(with_cond, without, scale), x, t, SCHEDULE)

            return ddim_sample(denoise, x, trailing_timesteps(steps), SCHEDULE)

        return self.scores(sample)


_data: dict[Settings, Data] = {}


def data_of(settings: Settings) -> Data:
    """Once in a process."""
    if settings not in _data:
        if multiprocessing.parent_process():
            torch.set_num_threads(1)
        _data[settings] = Data(settings)
    return _data[settings]


def run(name: str, seed: int, settings: Settings, key: str) -> dict[str, Any]:
    """A row of the JSON: one training and its scores. The training's state is kept until they are known."""
    data, config = data_of(settings), config_of(name, seed, settings)
    torch.manual_seed(stream_seed(seed, "start") % 2**63)
    adapter = inject_lora(data.unet, TARGETS, settings.rank, clamp=True)
    state, start = Path(settings.cache) / f"objective_{key[:16]}.safetensors", time.perf_counter()
    first = config.steps
    for progress in distill(data.model, adapter, partial(data.batch, seed), config, schedule=SCHEDULE, state=state):
        first = min(first, progress.step)
    seconds = time.perf_counter() - start
    with adapter.using(adapter.average):
        scores = {
            f"{gamma:g}": {str(steps): data.few_steps(steps, gamma) for steps in FEW}
            for gamma in GAMMAS
        }
    adapter.remove()
    loss = statistics.fmean(read_losses(state)[-max(1, config.steps // 20) :])
    state.unlink()
    return {
        "key": key, "row": name, "seed": seed, "config": asdict(config), "passes": passes(config),
        "seconds": seconds if first == 1 else None, "loss": loss, "scores": scores,
    }  # fmt: skip


def with_error(values: list[float], digits: int = 1) -> str:
    """Mean ± standard error; of one value without."""
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{error}"


def table(found: list[dict[str, Any]], teacher: dict[str, Any]) -> str:
    """Markdown: a row an objective and γ, with the distance and the accuracy at each number of steps."""
    heads = [f"distance, {n} step{'s' if n > 1 else ''}" for n in FEW] + [f"right at {n}" for n in FEW]
    lines = [
        f"| row | γ | steps | seconds | {' | '.join(heads)} |", f"|---|--:|--:|--:|{'--:|' * len(heads)}",
        f"| teacher, DDIM, guidance {teacher['guidance']:g} | | | | "
        + " | ".join(f"{teacher['few'][str(n)]['distance']:.1f}" for n in FEW) + " | "
        + " | ".join(f"{teacher['few'][str(n)]['accuracy']:.2f}" for n in FEW) + " |",
        f"| teacher, DDIM, 25 steps | | | | {teacher['many']['distance']:.1f} |"
        + " |" * (len(FEW) - 1) + f" {teacher['many']['accuracy']:.2f} |" + " |" * (len(FEW) - 1),
    ]  # fmt: skip
    for name in VARIANTS:
        runs = [row for row in found if row["row"] == name]
        for gamma in runs[0]["scores"] if runs else ():
            cells = [
                with_error([row["scores"][gamma][str(n)][score] for row in runs], digits)
                for score, digits in (("distance", 1), ("accuracy", 2))
                for n in FEW
            ]
            timed = [row["seconds"] for row in runs if row["seconds"] is not None]
            seconds = f"{statistics.fmean(timed):.0f}" if timed else ""
            lines.append(f"| {name} | {gamma} | {runs[0]['config']['steps']} | {seconds} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(path: Path, content: dict[str, Any]) -> None:
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=2000, help="of LCD; the others get its compute (default 2000)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of a row (default 3)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--links", type=int, default=20)
    parser.add_argument("--omega", type=float, nargs=2, default=(0.25, 1.0), metavar=("LOW", "HIGH"))
    parser.add_argument("--pictures", type=int, default=400, help="of a row at each number of steps (default 400)")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, metavar="ROW", default=list(VARIANTS),
                        help=f"of {', '.join(VARIANTS)}")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side (default 1)")
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--json", type=Path, default=Path(".cache/objectives.json"))
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        args.steps, args.batch, args.rank, args.learning_rate, args.links, tuple(args.omega), args.pictures,
        args.device, str(args.cache),
    )  # fmt: skip
    data = data_of(settings)
    source = fingerprint(dict(data.unet.named_parameters()) | {"latents": data.latents})
    content: dict[str, Any] = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {"runs": []}
    of_teacher = digest_of([source, args.pictures, NOISE_SEED])
    if content.get("teacher", {}).get("key") != of_teacher:
        many = {scale: data.teacher(25, scale) for scale in GUIDANCE}
        few = {scale: {str(n): data.teacher(n, scale) for n in FEW} for scale in GUIDANCE}
        best = min(GUIDANCE, key=lambda scale: many[scale]["distance"])
        content["teacher"] = {
            "key": of_teacher, "guidance": best, "many": many[best], "few": few[best],
            "grid": {f"{scale:g}": {"25": many[scale], **few[scale]} for scale in GUIDANCE},
        }  # fmt: skip
        write(args.json, content)
    asked = {}
    for seed in range(args.seeds):
        for name in args.only:
            known = {key: value for key, value in asdict(settings).items() if key not in ("device", "cache", "steps")}
            about = [source, known, asdict(config_of(name, seed, settings))]
            asked[digest_of(about)] = (name, seed)
    done = {row["key"] for row in content["runs"]}
    todo = {key: what for key, what in asked.items() if key not in done}

    def keep(row: dict[str, Any]) -> None:
        content["runs"].append({**row, "device": torch.cuda.get_device_name() if args.device != "cpu" else "cpu"})
        write(args.json, content)

    with tqdm(total=len(asked), initial=len(asked) - len(todo), desc="trainings", file=sys.stderr) as bar:
        if args.jobs == 1:
            for key, (name, seed) in todo.items():
                keep(run(name, seed, settings, key))
                bar.update()
        else:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
                futures = [pool.submit(run, name, seed, settings, key) for key, (name, seed) in todo.items()]
                try:
                    for future in as_completed(futures):
                        keep(future.result())
                        bar.update()
                finally:
                    pool.shutdown(cancel_futures=True)
    found = [row for row in content["runs"] if row["key"] in asked]
    print(f"{len(data.prompts)} pictures a cell, {args.seeds} seeds, the passes of {args.steps} steps of LCD\n")
    print(table(found, content["teacher"]))


if __name__ == "__main__":
    main()
