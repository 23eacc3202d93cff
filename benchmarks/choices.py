"""What γ, cfg and the share of guided steps do to quality and to variety, on the pocket model, as two tables.

1. The LCM-LoRA in 4 steps. 2. Style + LCM-LoRA in many steps, where γ matters most.

A row is the mean over runs with other noise, ± its standard error: the Fréchet distance of the judge's features to the
data (to the line drawings for the sums), of `--seeds` pictures of each prompt, and the diversity, the mean distance of
those features between two pictures of one prompt. Diversity tells unlike pictures from alike ones, not good from bad:
broken pictures are unlike too. Above each table stands the data's own.

python benchmarks/choices.py [--seeds 25] [--runs 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from few_step_quality import Bench, merged  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lcm_core.lora import LoRAVector  # noqa: E402
from pocket import autoencoder, judge, lcm, style, teacher  # noqa: E402
from pocket.data import CATEGORIES  # noqa: E402

GAMMAS = (1.0, 0.5, 0.3, 0.0)


@dataclass(frozen=True)
class Choice:
    method: str
    drawing: str  # of the data that it is measured against
    steps: int = 4
    gamma: float = 1.0
    cfg: float = 1.0
    unguided: int = 0  # of the first steps


FEW_STEPS = [
    *(Choice("LCM-LoRA", "colour", gamma=gamma) for gamma in GAMMAS),
    *(Choice("LCM-LoRA", "colour", cfg=cfg, unguided=first) for cfg in (1.5, 2.0) for first in (0, 1)),
]
BEST, OF_THE_PAPER = "1.0 style + 0.8 LCM", "0.8 style + 1.0 LCM"
SUMS = [
    Choice(method, "line", steps, gamma)
    for method, steps in ((BEST, 4), (BEST, 16), (BEST, 32), (OF_THE_PAPER, 16))
    for gamma in GAMMAS
]


def with_error(values: list[float]) -> tuple[float, float]:
    """Mean and standard error."""
    each = torch.tensor(values, dtype=torch.float64)
    return each.mean().item(), each.std().item() / len(values) ** 0.5


def rows(bench: Bench, unets: dict[str, torch.nn.Module], choices: list[Choice], runs: int) -> Iterator[dict]:
    for choice in choices:
        found: dict[str, list[float]] = {"accuracy": [], "distance": [], "diversity": []}
        for run in range(runs):
            again = replace(bench, seed=bench.seed + run)
            unet, steps = unets[choice.method], choice.steps
            images = again.sample(unet, "LCM", steps, choice.cfg, choice.gamma, choice.unguided)
            features: Tensor = bench.judge(images)
            found["accuracy"].append(judge.right(bench.judge, images, bench.prompts).float().mean().item())
            found["distance"].append(judge.frechet_distance(features, bench.real[choice.drawing]))
            found["diversity"].append(judge.diversity(features.unflatten(0, (len(CATEGORIES), -1)))[0])
        yield asdict(choice) | {name: with_error(values) for name, values in found.items()}


def table(found: list[dict]) -> str:
    lines = ["| method | steps | γ | cfg | without guidance | accuracy | distance | diversity |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|--:|")
    for row in found:
        lines.append(
            f"| {row['method']} | {row['steps']} | {row['gamma']:g} | {row['cfg']:g} | {row['unguided'] or ''} "
            f"| {row['accuracy'][0]:.2f} | {row['distance'][0]:.1f} ± {row['distance'][1]:.1f} "
            f"| {row['diversity'][0]:.2f} ± {row['diversity'][1]:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=25, help="pictures of each of the eight categories (default 25)")
    parser.add_argument("--runs", type=int, default=3, help="with other noise (default 3)")
    parser.add_argument("--noise-seed", type=int, default=11, help="of the first run (default 11)")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    start = time.perf_counter()
    torch.set_grad_enabled(False)
    unet, words = teacher.load_teacher()
    accelerate, draw = LoRAVector.load(lcm.WEIGHTS), LoRAVector.load(style.WEIGHTS)
    unets = {
        "LCM-LoRA": merged(unet, accelerate),
        BEST: merged(unet, draw + 0.8 * accelerate),
        OF_THE_PAPER: merged(unet, 0.8 * draw + accelerate),
    }
    prompts = [category for category in CATEGORIES for _ in range(args.seeds)]
    referee = judge.load_judge()
    real = load_file(judge.REFERENCE)
    bench = Bench(words, autoencoder.load_autoencoder()[1], referee, real, prompts, args.noise_seed)
    tables = []
    for choices in (FEW_STEPS, SUMS):
        found = rows(bench, unets, choices, args.runs)
        tables.append(list(tqdm(found, total=len(choices), file=sys.stderr)))
    print(f"{len(prompts)} pictures a run, {args.runs} runs a row\n")
    for drawing, found in zip(("colour", "line"), tables, strict=True):
        of_data, error = judge.diversity(real[drawing].unflatten(0, (len(CATEGORIES), -1)))
        print(f"the data's own diversity, {drawing}: {of_data:.2f} ± {error:.2f}\n\n{table(found)}\n")
    print(f"{time.perf_counter() - start:.0f} s")
    if args.json:
        args.json.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
