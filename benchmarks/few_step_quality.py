"""Few-step quality on the pocket model: prompt accuracy and Fréchet distance of each sampler, as a table.

Every row makes the same prompts (the eight categories, which leave much open) from the same noise. A judge that was
trained on the data says how many pictures show what the prompt names, and how many are line drawings; the Fréchet
distance is taken between its features of the pictures and of the data (of the line drawings for the style rows). The
many-step solvers are shown at guidance 1 and at the guidance of the grid that gives them their lowest distance.

python benchmarks/few_step_quality.py [--seeds 32] [--noise-seed 11] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
GUIDANCE = (1.5, 2.0, 3.0)


@dataclass(frozen=True)
class Row:
    method: str
    steps: int
    guidance: float
    evaluations: int
    accuracy: float
    distance: float
    line_share: float


@dataclass(frozen=True)
class Bench:
    words: Words
    decode: torch.nn.Module
    judge: judge.Judge
    real: dict[str, Tensor]
    prompts: list[str]
    seed: int
    batch: int = 64

    def sample(
        self, unet: PocketUNet, method: str, steps: int, scale: float, gamma: float = 1.0, unguided: int = 0
    ) -> Tensor:
        """Pictures (N, 3, 64, 64) of the prompts; gamma, and how many of the first steps are unguided, are LCM's."""
        pictures = []
        for start in range(0, len(self.prompts), self.batch):
            prompts = self.prompts[start : start + self.batch]
            indices = range(start, start + len(prompts))
            shape = (len(prompts), 4, 8, 8)
            x = step_noise(shape, self.seed, 0, indices)
            predict = denoiser(unet, self.words, prompts, scale)
            if method in SOLVERS:
                z = SOLVERS[method](
                    lambda x, t, p=predict: predict_x0(p(x, t), x, t, teacher.SCHEDULE),
                    x, trailing_timesteps(steps), teacher.SCHEDULE,
                )  # fmt: skip
            else:
                plain, levels = denoiser(unet, self.words, prompts, 1.0), lcm_timesteps(steps)
                used = {t: plain if i < unguided else predict for i, t in enumerate(levels)}
                z = multistep_sample(
                    lambda x, t, p=used: consistency_function(p[t](x, t), x, t, teacher.SCHEDULE),
                    x, levels, teacher.SCHEDULE.process,
                    noise=lambda i, s=shape, n=indices: step_noise(s, self.seed, i + 1, n), gamma=gamma,
                )  # fmt: skip
            pictures.append(self.decode(z).clamp(0, 1))
        return torch.cat(pictures)

    def row(self, label: str, unet: PocketUNet, method: str, steps: int, scale: float, drawing: str) -> Row:
        pictures = self.sample(unet, method, steps, scale)
        return Row(
            label,
            steps,
            scale,
            steps * (1 if scale == 1 else 2),
            judge.right(self.judge, pictures, self.prompts).float().mean().item(),
            judge.frechet_distance(self.judge(pictures), self.real[drawing]),
            judge.style_share(self.judge, pictures),
        )


def denoiser(unet: PocketUNet, words: Words, prompts: list[str], scale: float):
    """epsilon(x, t) under classifier-free guidance; scale 1 evaluates the prompt alone."""
    context, mask = words(words.index([p.split() for p in prompts]))
    empty, empty_mask = words(words.index([[] for _ in prompts]))
    both = torch.cat([context, empty]), torch.cat([mask, empty_mask])

    def predict(x: Tensor, t: float) -> Tensor:
        if scale == 1:
            return unet(x, torch.full((len(x),), t), context, mask)
        return guided(*unet(torch.cat([x, x]), torch.full((2 * len(x),), t), *both).chunk(2), scale)

    return predict


def merged(unet: PocketUNet, vector: LoRAVector) -> PocketUNet:
    """A copy of the UNet with the vector added to its weights."""
    unet = copy.deepcopy(unet)
    modules = {canonical_name(name): module for name, module in unet.named_modules()}
    for name in vector.modules:
        modules[name].weight += vector.delta(name)
    return unet


def measure(bench: Bench, unet: PocketUNet, steps: Sequence[int]) -> list[Row]:
    accelerate, draw = LoRAVector.load(lcm.WEIGHTS), LoRAVector.load(style.WEIGHTS)
    fast, drawn, both = (merged(unet, v) for v in (accelerate, draw, 0.8 * draw + 1.0 * accelerate))
    rows = []
    bar = tqdm(total=len(SOLVERS) * len(steps) + 8, desc="rows", file=sys.stderr)

    def add(*found: Row) -> None:
        rows.extend(found)
        bar.update()

    for solver in SOLVERS:
        for n in steps:
            guided_rows = [bench.row(solver, unet, solver, n, scale, "colour") for scale in GUIDANCE]
            best = min(guided_rows, key=lambda row: row.distance)
            add(bench.row(solver, unet, solver, n, 1.0, "colour"), best)
    for n in (1, 2, 4, 8):
        add(bench.row("LCM-LoRA", fast, "LCM", n, 1.0, "colour"))
    add(bench.row("LCM sampler, no LoRA", unet, "LCM", 4, 1.0, "colour"))
    add(bench.row("style", drawn, "DPM++ 2M", 25, 2.0, "line"))
    add(bench.row("style", drawn, "DPM++ 2M", 4, 2.0, "line"))
    add(bench.row("0.8 style + 1.0 LCM", both, "LCM", 4, 1.0, "line"))
    bar.close()
    return rows


def table(rows: list[Row]) -> str:
    lines = [
        "| method | steps | guidance | UNet evaluations | prompt accuracy | Fréchet distance | line drawings |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        lines.append(
            f"| {r.method} | {r.steps} | {r.guidance:g} | {r.evaluations} | {r.accuracy:.2f} | {r.distance:.2f} "
            f"| {r.line_share:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=32, help="pictures of each of the eight categories (default 32)")
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 8, 25], help="of the many-step solvers")
    parser.add_argument("--noise-seed", type=int, default=11, help="of the pictures' noise (default 11)")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    start = time.perf_counter()
    torch.set_grad_enabled(False)
    unet, words = teacher.load_teacher()
    _, decode = autoencoder.load_autoencoder()
    referee = judge.load_judge()
    features = load_file(judge.REFERENCE)
    prompts = [category for category in CATEGORIES for _ in range(args.seeds)]
    rows = measure(Bench(words, decode, referee, features, prompts, args.noise_seed), unet, args.steps)
    print(f"{len(prompts)} pictures a row, prompts: {', '.join(CATEGORIES)}\n")
    print(table(rows))
    print(f"\n{time.perf_counter() - start:.0f} s")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
