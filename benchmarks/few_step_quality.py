"""Few-step quality on the pocket model: distance to held-out pictures and prompt accuracy of each sampler, as a table.

Every row makes the same prompts (the eight categories, which leave much open) from the same noise. The distances are
taken between a judge's features of the pictures and of held-out ones of the same style: the kernel distance (KID,
arXiv 1801.01401, unbiased, × 100) and the Fréchet distance (arXiv 1706.08500). Precision and recall (arXiv 1904.06991)
tell quality from variety. Accuracy is the share of pictures that show what the prompt names. The ± is one standard
error over the noise seeds (jackknife). The many-step solvers are shown at the guidance of the grid with the lowest
kernel distance, and at guidance 1.

python benchmarks/few_step_quality.py [--seeds 16] [--device cuda] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lcm_core.consistency import consistency_function, multistep_sample, predict_x0  # noqa: E402
from lcm_core.guidance import guided  # noqa: E402
from lcm_core.lora import LoRAVector, canonical_name  # noqa: E402
from lcm_core.noise import step_noise  # noqa: E402
from lcm_core.schedule import lcm_timesteps, trailing_timesteps  # noqa: E402
from lcm_core.solvers import ddim_sample, dpmpp_2m_sample  # noqa: E402
from pocket import autoencoder, judge, lcm, style, teacher  # noqa: E402
from pocket.data import CATEGORIES  # noqa: E402
from pocket.unet import PocketUNet, Words  # noqa: E402

SOLVERS = {"DDIM": ddim_sample, "DPM++ 2M": dpmpp_2m_sample}
GUIDANCE = (2.0, 3.0, 4.0)
LATENT = (4, 16, 16)


@dataclass(frozen=True)
class Measured:
    """A figure and its standard error over the noise seeds."""

    value: float
    error: float

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} ± {self.error:{spec}}"


def beyond(less: Measured, more: Measured) -> float:
    """By how many standard errors of the difference `less` is below `more`; the pairing of the noise is left out."""
    return (more.value - less.value) / math.hypot(less.error, more.error)


@dataclass(frozen=True)
class Row:
    method: str
    steps: int
    guidance: float
    evaluations: int
    kernel: Measured
    frechet: Measured
    precision: Measured
    recall: Measured
    accuracy: Measured
    in_style: Measured


@dataclass(frozen=True)
class Bench:
    """The prompts, each with as many pictures a noise seed as it occurs, and the judge with its reference features."""

    words: Words
    decode: torch.nn.Module
    judge: judge.Judge
    real: dict[str, Tensor]
    prompts: list[str]
    seeds: int
    device: torch.device
    batch: int = 512
    first_seed: int = 11
    cells: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        cells = [(seed, i) for seed in range(self.seeds) for i in range(len(self.prompts))]
        object.__setattr__(self, "cells", cells)

    def sample(
        self, unet: PocketUNet, method: str, steps: int, scale: float, gamma: float = 1.0, unguided: int = 0
    ) -> Tensor:
        """Pictures (seeds · prompts, 3, H, W); gamma, and how many of the first steps are unguided, are LCM's."""
        return torch.cat([
            self.decode(self.latents(unet, part, method, steps, scale, gamma, unguided)).clamp(0, 1)
            for part in (self.cells[i : i + self.batch] for i in range(0, len(self.cells), self.batch))
        ])  # fmt: skip

    def noise(self, cells: Sequence[tuple[int, int]], step: int) -> Tensor:
        seeds, indices = zip(*cells, strict=True)
        shape = (len(cells), *LATENT)
        return step_noise(shape, [self.first_seed + seed for seed in seeds], step, indices).to(self.device)

    def latents(self, unet, cells, method: str, steps: int, scale: float, gamma: float, unguided: int) -> Tensor:
        prompts = [self.prompts[i] for _, i in cells]
        x, predict = self.noise(cells, 0), denoiser(unet, self.words, prompts, scale)
        if method in SOLVERS:
            return SOLVERS[method](
                lambda x, t: predict_x0(predict(x, t), x, t, teacher.SCHEDULE), x, trailing_timesteps(steps),
                teacher.SCHEDULE,
            )  # fmt: skip
        plain, levels = denoiser(unet, self.words, prompts, 1.0), lcm_timesteps(steps)
        used = {t: plain if i < unguided else predict for i, t in enumerate(levels)}
        return multistep_sample(
            lambda x, t: consistency_function(used[t](x, t), x, t, teacher.SCHEDULE), x, levels,
            teacher.SCHEDULE.process, noise=lambda i: self.noise(cells, i + 1), gamma=gamma,
        )  # fmt: skip

    def row(
        self, label: str, unet: PocketUNet, method: str, steps: int, scale: float, drawing: str, gamma: float = 1.0
    ) -> Row:
        return self.measured(label, self.sample(unet, method, steps, scale, gamma), steps, scale, drawing)

    def measured(self, label: str, pictures: Tensor, steps: int, scale: float, drawing: str) -> Row:
        real = self.real[drawing].to(self.device)
        parts = pictures.split(self.batch)
        features = torch.cat([self.judge(part) for part in parts]).unflatten(0, (self.seeds, -1))
        right = judge.right(self.judge, pictures, self.prompts * self.seeds).unflatten(0, (self.seeds, -1))
        styled = torch.cat([judge.in_style(self.judge, part) for part in parts]).unflatten(0, (self.seeds, -1))

        def over_seeds(statistic, groups: Tensor) -> Measured:
            return Measured(*judge.jackknife(statistic, groups))

        def share(found: Tensor) -> float:
            return found.float().mean().item()

        return Row(
            label, steps, scale, steps * (1 if scale == 1 else 2),
            kernel=over_seeds(lambda f: 100 * judge.kernel_distance(f, real), features),
            frechet=over_seeds(partial(judge.frechet_distance, b=real), features),
            precision=over_seeds(lambda f: judge.precision_recall(f, real)[0], features),
            recall=over_seeds(lambda f: judge.precision_recall(f, real)[1], features),
            accuracy=over_seeds(share, right), in_style=over_seeds(share, styled),
        )  # fmt: skip

    def best(self, label: str, unet: PocketUNet, method: str, steps: int, drawing: str) -> Row:
        """The row of the guidance, 1 or of GUIDANCE, with the lowest kernel distance."""
        rows = [self.row(label, unet, method, steps, scale, drawing) for scale in (1.0, *GUIDANCE)]
        return min(rows, key=lambda row: row.kernel.value)


def denoiser(unet: PocketUNet, words: Words, prompts: list[str], scale: float):
    """epsilon(x, t) under classifier-free guidance; scale 1 evaluates the prompt alone."""
    context, mask = words(words.index([p.split() for p in prompts]))
    empty, empty_mask = words(words.index([[] for _ in prompts]))
    both = torch.cat([context, empty]), torch.cat([mask, empty_mask])

    def predict(x: Tensor, t: float) -> Tensor:
        if scale == 1:
            return unet(x, torch.full((len(x),), t, device=x.device), context, mask)
        doubled = torch.full((2 * len(x),), t, device=x.device)
        return guided(*unet(torch.cat([x, x]), doubled, *both).chunk(2), scale)

    return predict


def merged(unet: PocketUNet, vector: LoRAVector) -> PocketUNet:
    """A copy of the UNet with the vector added to its weights."""
    unet = copy.deepcopy(unet)
    modules = {canonical_name(name): module for name, module in unet.named_modules()}
    for name in vector.modules:
        modules[name].weight += vector.delta(name).to(modules[name].weight.device)
    return unet


def open_bench(
    prompts: Iterable[str], seeds: int, device: torch.device, first_seed: int = 11
) -> tuple[Bench, PocketUNet]:
    """The bench of the shipped weights, and the teacher."""
    torch.set_grad_enabled(False)
    unet, words = teacher.load_teacher(device=device)
    _, decode = autoencoder.load_autoencoder(device=device)
    real = {name: features.float() for name, features in load_file(judge.REFERENCE).items()}
    referee = judge.load_judge(device=device)
    return Bench(words, decode, referee, real, list(prompts), seeds, device, first_seed=first_seed), unet


def measure(bench: Bench, unet: PocketUNet, steps: Sequence[int]) -> list[Row]:
    accelerate, draw = LoRAVector.load(lcm.WEIGHTS), LoRAVector.load(style.WEIGHTS)
    fast, drawn, lighter, both = (
        merged(unet, v) for v in (accelerate, draw, 0.8 * draw, 0.8 * draw + 1.0 * accelerate)
    )
    rows = []
    bar = tqdm(total=len(SOLVERS) * len(steps) + 12, desc="rows", file=sys.stderr)

    def add(*found: Row) -> None:
        rows.extend(found)
        bar.update()

    for solver in SOLVERS:
        for n in steps:
            best = bench.best(solver, unet, solver, n, "colour")
            add(*([] if best.guidance == 1 else [bench.row(solver, unet, solver, n, 1.0, "colour")]), best)
    for n in (1, 2, 4, 8):
        add(bench.row("LCM-LoRA", fast, "LCM", n, 1.0, "colour"))
    add(bench.row("LCM sampler, no LoRA", unet, "LCM", 4, 1.0, "colour"))
    for n in (25, 4):
        add(bench.best("style", drawn, "DPM++ 2M", n, "paper"))
    add(bench.best("0.8 style", lighter, "DPM++ 2M", 25, "paper"))
    for n, gamma in ((4, 1.0), (8, 1.0), (16, 1.0), (16, 0.3)):
        label = "0.8 style + 1.0 LCM" + ("" if gamma == 1 else f", γ = {gamma:g}")
        add(bench.row(label, both, "LCM", n, 1.0, "paper", gamma))
    bar.close()
    return rows


def table(rows: list[Row]) -> str:
    lines = [
        "| method | steps | guidance | UNet evaluations | kernel distance × 100 | Fréchet distance | precision "
        "| recall | prompt accuracy | paper style |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        lines.append(
            f"| {r.method} | {r.steps} | {r.guidance:g} | {r.evaluations} | {r.kernel:.2f} | {r.frechet:.2f} "
            f"| {r.precision.value:.2f} | {r.recall.value:.2f} | {r.accuracy:.3f} | {r.in_style.value:.3f} |"
        )
    return "\n".join(lines)


def claims(rows: list[Row]) -> str:
    """How far the LCM-LoRA is ahead of each solver, at equal steps, at 4 against 8, and at equal evaluations."""
    ours = {row.steps: row for row in rows if row.method == "LCM-LoRA"}
    lines = []
    for solver in SOLVERS:
        theirs = [row for row in rows if row.method == solver]
        pairs = [(ours[mine], [row for row in theirs if row.steps == n], f"its best {n} steps")
                 for mine, n in ((1, 1), (2, 2), (4, 4), (4, 8), (8, 25))]  # fmt: skip
        pairs += [(row, [r for r in theirs if r.evaluations == row.evaluations], "as many evaluations")
                  for row in ours.values()]  # fmt: skip
        for mine, found, said in pairs:
            if found:
                best = min(found, key=lambda row: row.kernel.value)
                errors = beyond(mine.kernel, best.kernel)
                verdict = "ahead" if errors > 3 else "behind" if errors < -3 else "no difference shown"
                lines.append(
                    f"LCM-LoRA at {mine.steps} against {solver} at {said} ({best.steps} steps, guidance "
                    f"{best.guidance:g}): {errors:+.1f} standard errors, {verdict}"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16, help="noise seeds of 64 pictures each (default 16)")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 25], help="of the many-step solvers")
    parser.add_argument("--noise-seed", type=int, default=11, help="the first of them (default 11)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    start = time.perf_counter()
    prompts = [category for category in CATEGORIES for _ in range(8)]
    bench, unet = open_bench(prompts, args.seeds, torch.device(args.device), args.noise_seed)
    rows = measure(bench, unet, args.steps)
    print(f"{len(bench.cells)} pictures a row, {args.seeds} noise seeds; prompts: {', '.join(CATEGORIES)}\n")
    print(table(rows) + "\n\n" + claims(rows))
    print(f"\n{time.perf_counter() - start:.0f} s on {args.device}")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
