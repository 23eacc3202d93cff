"""The LCM and LCM-LoRA papers in small: their comparisons, on the pocket model, as tables and a figure.

python benchmarks/paper_models.py && python benchmarks/paper.py [--seeds 50] [--figure docs/paper.jpg]

1. LCM's table 1 (arXiv 2310.04378): the Fréchet distance to the data and the share of pictures that show what the
   prompt names, after 1, 2, 4 and 8 steps of DDIM, DPM-Solver++, guided distillation, the full LCM and the LCM-LoRA.
   Every method has its best guidance of the same three; every row has the same prompts and the same noise.
2. Latent consistency fine-tuning: line drawings in 4 steps; and the LCM-LoRA at lower ranks.
3. LCM-LoRA's eq. 3 (arXiv 2311.05556), λ₁·style + λ₂·LCM, in 4 steps over a grid of λ₁ and λ₂.
4. Its figure 3: the style LoRA with DPM-Solver++ against the sum with LCM's multistep sampling, by steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from few_step_quality import GUIDANCE, Bench, Row, merged  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from paper_models import GuidedUNet, load_guided  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402
from torchvision.utils import make_grid  # noqa: E402

from lcm_core.lora import LoRAVector  # noqa: E402
from pocket import autoencoder, judge, lcm, style, teacher  # noqa: E402
from pocket.data import CATEGORIES  # noqa: E402

STEPS = (1, 2, 4, 8)
LAMBDA_STYLE, LAMBDA_LCM = (0.4, 0.6, 0.8, 1.0, 1.2), (0.4, 0.6, 0.8, 1.0)
FIGURE_STEPS = (2, 4, 8, 16, 32)
RANKS = (1, 2, 4, 8, 16, 32, 64)
SHOWN = ("animal", "fruit", "vehicle", "flower")  # in a cell of the figure
Tables = dict[str, list[Row]]


def at_omega(net: GuidedUNet, omega: float) -> Callable[..., Tensor]:
    """The network as one without the input ω."""
    return lambda x, t, context, mask: net(x, t, (context, mask), torch.full((len(x),), omega))


def best(rows: list[Row]) -> Row:
    return min(rows, key=lambda row: row.distance)


def few_steps(bench: Bench, cache: Path, unet, fast) -> list[Row]:
    """LCM's table 1."""
    full = load_guided(cache / "paper_full_lcm.safetensors")
    rows = []
    for n in STEPS:
        halved = load_guided(cache / f"paper_guided_{n}.safetensors")
        for solver in ("DDIM", "DPM++ 2M"):
            rows.append(best([bench.row(solver, unet, solver, n, scale, "colour") for scale in GUIDANCE]))
        for label, net, sampler in (("guided distillation", halved, "DDIM"), ("LCM", full, "LCM")):
            found = [bench.row(label, at_omega(net, scale - 1), sampler, n, 1.0, "colour") for scale in GUIDANCE]
            rows.append(best(found))
        rows.append(bench.row("LCM-LoRA", fast, "LCM", n, 1.0, "colour"))
    return rows


def line_drawings(bench: Bench, drawn, weaker, fast, tuned, mixed) -> list[Row]:
    """What LCF makes of the LCM-LoRA's model, and other ways to line drawings."""
    return [
        bench.row("1.0 style, DPM++ 2M", drawn, "DPM++ 2M", 25, 2.0, "line"),
        bench.row("1.0 style, DPM++ 2M", drawn, "DPM++ 2M", 4, 2.0, "line"),
        bench.row("0.8 style, DPM++ 2M", weaker, "DPM++ 2M", 25, 2.0, "line"),
        bench.row("1.0 style, LCM", drawn, "LCM", 4, 1.0, "line"),
        bench.row("LCM-LoRA", fast, "LCM", 4, 1.0, "line"),
        bench.row("LCM-LoRA, fine-tuned (LCF)", tuned, "LCM", 4, 1.0, "line"),
        bench.row("0.8 style + 1.0 LCM-LoRA", mixed, "LCM", 4, 1.0, "line"),
    ]


def sums(bench: Bench, mix: Callable[[float, float], torch.nn.Module]) -> list[Row]:
    return [
        bench.row(f"{a:g} {b:g}", mix(a, b), "LCM", 4, 1.0, "line") for a in LAMBDA_STYLE for b in LAMBDA_LCM
    ]  # fmt: skip


def ranks(bench: Bench, unet, accelerate: LoRAVector) -> list[Row]:
    """The LCM-LoRA compressed."""
    return [
        bench.row(f"rank {rank}", merged(unet, accelerate.compress(rank=rank)), "LCM", 4, 1.0, "colour")
        for rank in RANKS
    ]


def by_steps(bench: Bench, drawn, sums: dict[str, torch.nn.Module]) -> list[Row]:
    """LCM-LoRA's figure 3, as numbers."""
    rows = [bench.row("style alone, DPM++ 2M", drawn, "DPM++ 2M", n, 2.0, "line") for n in FIGURE_STEPS]
    for label, unet in sums.items():
        rows += [bench.row(label, unet, "LCM", n, 1.0, "line") for n in FIGURE_STEPS]
    return rows


def draw(bench: Bench, drawn, sums: dict[str, torch.nn.Module], path: Path) -> None:
    """LCM-LoRA's figure 3: a row a method, a column a number of steps, four prompts in a cell."""
    methods = [("style alone\nDPM++ 2M", drawn, "DPM++ 2M", 2.0)]
    methods += [(f"{label}\nLCM", unet, "LCM", 1.0) for label, unet in sums.items()]
    figure = Figure(figsize=(2 * len(FIGURE_STEPS), 2 * len(methods)), dpi=110, layout="constrained")
    axes = figure.subplots(len(methods), len(FIGURE_STEPS), squeeze=False)
    for cell, n in zip(axes[0], FIGURE_STEPS, strict=True):
        cell.set_title(f"{n} steps")
    for row, (label, unet, sampler, scale) in zip(axes, methods, strict=True):
        for cell, n in zip(row, FIGURE_STEPS, strict=True):
            pictures = Bench(bench.words, bench.decode, bench.judge, bench.real, list(SHOWN), 3).sample(
                unet, sampler, n, scale
            )  # fmt: skip
            cell.imshow(make_grid(pictures, nrow=2, padding=1).permute(1, 2, 0).numpy())
            cell.set(xticks=[], yticks=[])
        row[0].set_ylabel(label)
    FigureCanvasAgg(figure).print_jpg(path, pil_kwargs={"quality": 85})


def by_method(rows: list[Row], steps: tuple[int, ...]) -> str:
    """Methods down, steps across: distance, then accuracy."""
    found = {(row.method, row.steps): row for row in rows}
    heads = [*(f"distance {n}" for n in steps), *(f"accuracy {n}" for n in steps)]
    lines = [f"| method, steps: | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    for method in dict.fromkeys(row.method for row in rows):
        cells = [f"{found[method, n].distance:.2f}" for n in steps]
        cells += [f"{found[method, n].accuracy:.2f}" for n in steps]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def in_a_row(rows: list[Row]) -> str:
    lines = ["| method | steps | UNet evaluations | line drawings | accuracy | distance |", "|---|--:|--:|--:|--:|--:|"]
    lines += [
        f"| {r.method} | {r.steps} | {r.evaluations} | {r.line_share:.2f} | {r.accuracy:.2f} | {r.distance:.1f} |"
        for r in rows
    ]
    return "\n".join(lines)


def grid(rows: list[Row]) -> str:
    cells = {row.method: f"{row.distance:.0f} ({row.line_share:.2f})" for row in rows}
    lines = [f"| λ₁ style, λ₂ LCM: | {' | '.join(map(str, LAMBDA_LCM))} |", f"|---|{'--:|' * len(LAMBDA_LCM)}"]
    lines += [f"| {a} | {' | '.join(cells[f'{a:g} {b:g}'] for b in LAMBDA_LCM)} |" for a in LAMBDA_STYLE]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="where paper_models.py left its models")
    parser.add_argument("--seeds", type=int, default=50, help="pictures of each of the eight categories (default 50)")
    parser.add_argument("--noise-seed", type=int, default=11)
    parser.add_argument("--figure", type=Path, help="draw figure 3 here, as a JPEG")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    start = time.perf_counter()
    torch.set_grad_enabled(False)

    unet, words = teacher.load_teacher()
    accelerate, to_lines = LoRAVector.load(lcm.WEIGHTS), LoRAVector.load(style.WEIGHTS)
    fine_tuning = LoRAVector.load(args.cache / "paper_fine_tuning.safetensors")

    def mix(lambda_style: float, lambda_lcm: float) -> torch.nn.Module:
        return merged(unet, lambda_style * to_lines + lambda_lcm * accelerate)

    prompts = [category for category in CATEGORIES for _ in range(args.seeds)]
    real = load_file(judge.REFERENCE)
    bench = Bench(words, autoencoder.load_autoencoder()[1], judge.load_judge(), real, prompts, args.noise_seed)
    fast, drawn, tuned = (merged(unet, v) for v in (accelerate, to_lines, accelerate + fine_tuning))
    tables: Tables = {"sums": sums(bench, mix)}
    chosen = {f"{a} style + {b} LCM": mix(float(a), float(b)) for a, b in (
        ("0.8", "1.0"), tuple(best(tables["sums"]).method.split())
    )}  # fmt: skip
    tables["few steps"] = few_steps(bench, args.cache, unet, fast)
    tables["line drawings"] = line_drawings(bench, drawn, mix(0.8, 0), fast, tuned, mix(0.8, 1.0))
    tables["ranks"] = ranks(bench, unet, accelerate)
    tables["by steps"] = by_steps(bench, drawn, chosen)
    if args.figure:
        draw(bench, drawn, chosen, args.figure)

    print(f"{len(prompts)} pictures a row\n\nFew steps\n\n{by_method(tables['few steps'], STEPS)}\n")
    print(f"Line drawings\n\n{in_a_row(tables['line drawings'])}\n")
    print(f"Sums, 4 steps: distance to the line drawings (share of line drawings)\n\n{grid(tables['sums'])}\n")
    print(f"The LCM-LoRA at lower ranks\n\n{in_a_row(tables['ranks'])}\n")
    print(f"Sums by steps\n\n{by_method(tables['by steps'], FIGURE_STEPS)}\n\n{time.perf_counter() - start:.0f} s")
    if args.json:
        rows = {name: [asdict(row) for row in rows] for name, rows in tables.items()}
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
