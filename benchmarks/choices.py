"""What γ, cfg and the share of guided steps do to quality and to variety, on the pocket model, as two tables.

1. The LCM-LoRA in 4 steps. 2. Style + LCM-LoRA in many steps, where γ matters most.

Distance and accuracy are those of few_step_quality.py. Diversity is the mean distance of the judge's features between
two pictures of one prompt: it tells unlike pictures from alike ones, not good from bad, for broken pictures are unlike
too. Each ± is one standard error over the noise seeds.

python benchmarks/choices.py [--seeds 16] [--device cuda] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from few_step_quality import Bench, Measured, Row, merged, open_bench  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lcm_core.lora import LoRAVector  # noqa: E402
from pocket import judge, lcm, style  # noqa: E402
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
    *(Choice("LCM-LoRA", "colour", cfg=cfg, unguided=first) for cfg in (1.5, 2.0, 3.0) for first in (0, 1)),
]
BEST, OF_THE_PAPER = "1.0 style + 0.8 LCM", "0.8 style + 1.0 LCM"
SUMS = [
    Choice(method, "paper", steps, gamma)
    for method, steps in ((BEST, 4), (BEST, 16), (BEST, 32), (OF_THE_PAPER, 16))
    for gamma in GAMMAS
]


def rows(
    bench: Bench, unets: dict[str, torch.nn.Module], choices: list[Choice]
) -> Iterator[tuple[Choice, Row, Measured]]:
    """Each choice with what few_step_quality measures and the diversity."""
    for choice in choices:
        unet, steps = unets[choice.method], choice.steps
        images = bench.sample(unet, "LCM", steps, choice.cfg, choice.gamma, choice.unguided)
        features = torch.cat([bench.judge(part) for part in images.split(bench.batch)])
        by_prompt = features.unflatten(0, (bench.seeds, len(CATEGORIES), -1)).transpose(0, 1).flatten(1, 2)
        yield choice, bench.measured(choice.method, images, steps, choice.cfg, choice.drawing), Measured(
            *judge.diversity(by_prompt.cpu())
        )


def table(found: list[tuple[Choice, Row, Measured]]) -> str:
    lines = ["| method | steps | γ | cfg | without guidance | accuracy | kernel distance × 100 | diversity |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|--:|")
    for choice, row, diversity in found:
        lines.append(
            f"| {choice.method} | {choice.steps} | {choice.gamma:g} | {choice.cfg:g} | {choice.unguided or ''} "
            f"| {row.accuracy.value:.2f} | {row.kernel:.1f} | {diversity:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16, help="noise seeds of 64 pictures each (default 16)")
    parser.add_argument("--noise-seed", type=int, default=11, help="the first of them (default 11)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    start = time.perf_counter()
    prompts = [category for category in CATEGORIES for _ in range(8)]
    bench, unet = open_bench(prompts, args.seeds, torch.device(args.device), args.noise_seed)
    accelerate, draw = LoRAVector.load(lcm.WEIGHTS), LoRAVector.load(style.WEIGHTS)
    unets = {
        "LCM-LoRA": merged(unet, accelerate),
        BEST: merged(unet, draw + 0.8 * accelerate),
        OF_THE_PAPER: merged(unet, 0.8 * draw + accelerate),
    }
    print(f"{len(bench.cells)} pictures a row, {args.seeds} noise seeds\n")
    tables = []
    for choices in (FEW_STEPS, SUMS):
        tables.append(list(tqdm(rows(bench, unets, choices), total=len(choices), file=sys.stderr)))
        print(table(tables[-1]) + "\n")
    print(f"{time.perf_counter() - start:.0f} s on {args.device}")
    if args.json:
        written = [[[asdict(part) for part in row] for row in found] for found in tables]
        args.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
