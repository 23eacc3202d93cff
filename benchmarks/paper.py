"""The LCM and LCM-LoRA papers in small: their comparisons, on the pocket model, as tables and a figure.

python benchmarks/paper_models.py && python benchmarks/paper.py [--seeds 16] [--device cuda] [--figure docs/paper.jpg]

1. LCM's table 1 (arXiv 2310.04378): the distance to held-out pictures and the share of pictures that show what the
   prompt names, after 1, 2, 4 and 8 steps of DDIM, DPM-Solver++, guided distillation, the full LCM and the LCM-LoRA.
   Every method has its best guidance of the same four; every row has the same prompts and the same noise.
2. Whether the full LCM follows its ω: the cosine between what ω and what the teacher's guidance change in a picture.
3. Latent consistency fine-tuning: paper-cut pictures in 4 steps; and the LCM-LoRA at lower ranks.
4. LCM-LoRA's eq. 3 (arXiv 2311.05556), λ₁·style + λ₂·LCM, in 4 steps over a grid of λ₁ and λ₂.
5. Its figure 3: the style LoRA with DPM-Solver++ against the sum with LCM's multistep sampling, by steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from few_step_quality import (  # noqa: E402
    GUIDANCE,
    Bench,
    Measured,
    Row,
    beyond,
    denoiser,
    merged,
    open_bench,
)
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from paper_models import GuidedUNet, load_guided  # noqa: E402
from torch import Tensor  # noqa: E402
from torchvision.utils import make_grid  # noqa: E402

from lcm_core.lora import LoRAVector  # noqa: E402
from lcm_core.schedule import expand  # noqa: E402
from pocket import lcm, style  # noqa: E402
from pocket.data import CATEGORIES  # noqa: E402
from pocket.judge import jackknife  # noqa: E402
from pocket.teacher import SCHEDULE  # noqa: E402

STEPS = (1, 2, 4, 8)
LAMBDA_STYLE, LAMBDA_LCM = (0.4, 0.6, 0.8, 1.0, 1.2), (0.4, 0.6, 0.8, 1.0)
FIGURE_STEPS = (2, 4, 8, 16, 32)
RANKS = (1, 2, 4, 8, 16, 32)
SHOWN = ("animal", "fruit", "vehicle", "flower")  # in a cell of the figure
FULL = {"LCM": "full_lcm", "LCM from the teacher": "full_lcm_cold"}  # label → what paper_models.py calls it
RESPONSE = (1.5, 3.0)  # guidance scales between which the full LCM's response is measured
Tables = dict[str, list[Row]]


def at_omega(net: GuidedUNet, omega: float) -> Callable[..., Tensor]:
    """The network as one without the input ω."""
    return lambda x, t, context, mask: net(x, t, (context, mask), torch.full((len(x),), omega))


def best(rows: list[Row]) -> Row:
    return min(rows, key=lambda row: row.kernel.value)


def few_steps(bench: Bench, cache: Path, unet, fast) -> list[Row]:
    """LCM's table 1, with those of its models that paper_models.py has made."""
    scales = (1.0, *GUIDANCE)
    full = [(label, load_guided(path), "LCM") for label, name in FULL.items() if (path := made(cache, name)).exists()]
    rows = []
    for n in STEPS:
        rows += [bench.best(solver, unet, solver, n, "colour") for solver in ("DDIM", "DPM++ 2M")]
        halved = made(cache, f"guided_{n}")
        asked = [("guided distillation", load_guided(halved), "DDIM")] if halved.exists() else []
        for label, net, sampler in (*asked, *full):
            found = [bench.row(label, at_omega(net, scale - 1), sampler, n, 1.0, "colour") for scale in scales]
            rows.append(replace(row := best(found), guidance=scales[found.index(row)]))
        rows.append(bench.row("LCM-LoRA", fast, "LCM", n, 1.0, "colour"))
    return rows


def made(cache: Path, name: str) -> Path:
    return cache / f"paper_{name}.safetensors"


def follows(bench: Bench, unet, full: GuidedUNet, steps: int = 4) -> Measured:
    """Cosine of what RESPONSE changes in a category's mean picture: by the LCM's ω and by the teacher's guidance."""
    theirs = [bench.sample(unet, "DPM++ 2M", 25, scale) for scale in RESPONSE]
    ours = [bench.sample(at_omega(full, scale - 1), "LCM", steps, 1.0) for scale in RESPONSE]
    moved = torch.stack([(high - low).flatten(1) for low, high in (theirs, ours)], dim=1)

    def cosine(changes: Tensor) -> float:
        mean = changes.unflatten(0, (-1, len(CATEGORIES), len(bench.prompts) // len(CATEGORIES))).mean((0, 2))
        return torch.cosine_similarity(mean[:, 0], mean[:, 1], dim=1).mean().item()

    return Measured(*jackknife(cosine, moved.unflatten(0, (bench.seeds, -1))))


def one_step_response(bench: Bench, unet, full: GuidedUNet, t: int) -> Measured:
    """Mean cosine, over noise seeds, of what RESPONSE changes in a picture's ε̂ at t: by ω and by guidance."""
    alpha, sigma = SCHEDULE.process(t)
    found = []
    for seed in range(bench.seeds):
        cells = [(seed, i) for i in range(len(bench.prompts))]
        z = bench.latents(unet, cells, "DPM++ 2M", 25, 2.0, 1.0, 0)
        x = expand(alpha, z) * z + expand(sigma, z) * bench.noise(cells, 9)
        guided = [denoiser(unet, bench.words, bench.prompts, scale)(x, t) for scale in RESPONSE]
        asked = [denoiser(at_omega(full, scale - 1), bench.words, bench.prompts, 1.0)(x, t) for scale in RESPONSE]
        change = [(b - a).flatten(1) for a, b in (guided, asked)]
        found.append(torch.cosine_similarity(*change, dim=1).mean())
    cosines = torch.stack(found)
    return Measured(cosines.mean().item(), (cosines.std() / len(cosines) ** 0.5).item())


def paper_cuts(bench: Bench, drawn, weaker, fast, tuned, mixed) -> list[Row]:
    """What LCF makes of the LCM-LoRA's model, and other ways to paper-cut pictures."""
    return [
        bench.best("1.0 style, DPM++ 2M", drawn, "DPM++ 2M", 25, "paper"),
        bench.best("1.0 style, DPM++ 2M", drawn, "DPM++ 2M", 4, "paper"),
        bench.best("0.8 style, DPM++ 2M", weaker, "DPM++ 2M", 25, "paper"),
        bench.row("1.0 style, LCM", drawn, "LCM", 4, 1.0, "paper"),
        bench.row("LCM-LoRA", fast, "LCM", 4, 1.0, "paper"),
        bench.row("LCM-LoRA, fine-tuned (LCF)", tuned, "LCM", 4, 1.0, "paper"),
        bench.row("0.8 style + 1.0 LCM-LoRA", mixed, "LCM", 4, 1.0, "paper"),
    ]


def sums(bench: Bench, mix: Callable[[float, float], torch.nn.Module]) -> list[Row]:
    return [
        bench.row(f"{a:g} {b:g}", mix(a, b), "LCM", 4, 1.0, "paper") for a in LAMBDA_STYLE for b in LAMBDA_LCM
    ]  # fmt: skip


def ranks(bench: Bench, unet, accelerate: LoRAVector) -> list[Row]:
    """The LCM-LoRA compressed."""
    return [
        bench.row(f"rank {rank}", merged(unet, accelerate.compress(rank=rank)), "LCM", 4, 1.0, "colour")
        for rank in RANKS
    ]


def by_steps(bench: Bench, drawn, sums: dict[str, torch.nn.Module]) -> list[Row]:
    """LCM-LoRA's figure 3, as numbers."""
    rows = [bench.best("style alone, DPM++ 2M", drawn, "DPM++ 2M", n, "paper") for n in FIGURE_STEPS]
    for label, unet in sums.items():
        for gamma in (1.0, 0.3):
            name = label if gamma == 1 else f"{label}, γ = {gamma:g}"
            rows += [bench.row(name, unet, "LCM", n, 1.0, "paper", gamma) for n in FIGURE_STEPS]
    return rows


def draw(bench: Bench, drawn, sums: dict[str, torch.nn.Module], path: Path) -> None:
    """LCM-LoRA's figure 3: a row a method, a column a number of steps, four prompts in a cell."""
    methods = [("style alone\nDPM++ 2M", drawn, "DPM++ 2M", 2.0)]
    methods += [(f"{label}\nLCM", unet, "LCM", 1.0) for label, unet in sums.items()]
    figure = Figure(figsize=(2.4 * len(FIGURE_STEPS), 2.4 * len(methods)), dpi=110, layout="constrained")
    axes = figure.subplots(len(methods), len(FIGURE_STEPS), squeeze=False)
    few = replace(bench, prompts=list(SHOWN), seeds=1, first_seed=3)
    for cell, n in zip(axes[0], FIGURE_STEPS, strict=True):
        cell.set_title(f"{n} steps")
    for row, (label, unet, sampler, scale) in zip(axes, methods, strict=True):
        for cell, n in zip(row, FIGURE_STEPS, strict=True):
            pictures = few.sample(unet, sampler, n, scale)
            cell.imshow(make_grid(pictures, nrow=2, padding=2, pad_value=1).permute(1, 2, 0).cpu().numpy())
            cell.set(xticks=[], yticks=[])
        row[0].set_ylabel(label)
    FigureCanvasAgg(figure).print_jpg(path, pil_kwargs={"quality": 88})


def by_method(rows: list[Row], steps: tuple[int, ...]) -> str:
    """Methods down, steps across: kernel distance, then accuracy."""
    found = {(row.method, row.steps): row for row in rows}
    heads = [*(f"distance {n}" for n in steps), *(f"accuracy {n}" for n in steps)]
    lines = [f"| method, steps: | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    for method in dict.fromkeys(row.method for row in rows):
        cells = [f"{found[method, n].kernel:.1f}" for n in steps]
        cells += [f"{found[method, n].accuracy.value:.2f}" for n in steps]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def in_a_row(rows: list[Row]) -> str:
    lines = [
        "| method | steps | guidance | UNet evaluations | paper style | accuracy | kernel distance × 100 | Fréchet |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {r.method} | {r.steps} | {r.guidance:g} | {r.evaluations} | {r.in_style:.3f} | {r.accuracy:.3f} "
        f"| {r.kernel:.1f} | {r.frechet:.1f} |"
        for r in rows
    ]
    return "\n".join(lines)


def grid(rows: list[Row]) -> str:
    cells = {row.method: f"{row.kernel:.1f} ({row.in_style.value:.2f})" for row in rows}
    lines = [f"| λ₁ style, λ₂ LCM: | {' | '.join(map(str, LAMBDA_LCM))} |", f"|---|{'--:|' * len(LAMBDA_LCM)}"]
    lines += [f"| {a} | {' | '.join(cells[f'{a:g} {b:g}'] for b in LAMBDA_LCM)} |" for a in LAMBDA_STYLE]
    return "\n".join(lines)


def findings(tables: Tables, response: dict[str, Measured]) -> str:
    """What of the papers' order holds here: a line a claim, with the difference in standard errors."""
    row = {(r.method, r.steps): r for rows in (tables["few steps"], tables["by steps"]) for r in rows}
    claims = [
        (f"{ours} at {n} steps is ahead of {theirs} at {m}", row[ours, n].kernel, row[theirs, m].kernel)
        for ours in ("LCM-LoRA", "LCM")
        for theirs in ("DDIM", "DPM++ 2M")
        for n, m in ((1, 1), (2, 2), (4, 4), (4, 8))
        if (ours, n) in row
    ]
    claims += [(f"LCM is ahead of guided distillation at {n} steps", row["LCM", n].kernel,
                row["guided distillation", n].kernel) for n in STEPS if ("guided distillation", n) in row]  # fmt: skip
    mixed = "0.8 style + 1.0 LCM"
    claims += [(f"the sum at 4 steps is ahead of the style alone at {n}", row[mixed, 4].kernel,
                row["style alone, DPM++ 2M", n].kernel) for n in (2, 4)]  # fmt: skip
    lines = []
    for text, less, more in claims:
        errors = beyond(less, more)
        lines.append(f"- {'holds' if errors > 3 else 'fails' if errors < -3 else 'open'} ({errors:+.1f}): {text}")
    said = f"- cosine of the responses to guidance {RESPONSE}"
    return "\n".join([*lines, *(f"{said}, {name}: {value:.2f}" for name, value in response.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="where paper_models.py left its models")
    parser.add_argument("--seeds", type=int, default=16, help="noise seeds of 64 pictures each (default 16)")
    parser.add_argument("--noise-seed", type=int, default=11, help="the first of them (default 11)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--figure", type=Path, help="draw figure 3 here, as a JPEG")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    start = time.perf_counter()

    prompts = [category for category in CATEGORIES for _ in range(8)]
    bench, unet = open_bench(prompts, args.seeds, torch.device(args.device), args.noise_seed)
    accelerate, to_paper = LoRAVector.load(lcm.WEIGHTS), LoRAVector.load(style.WEIGHTS)
    fine_tuning = LoRAVector.load(made(args.cache, "fine_tuning"))

    def mix(lambda_style: float, lambda_lcm: float) -> torch.nn.Module:
        return merged(unet, lambda_style * to_paper + lambda_lcm * accelerate)

    fast, drawn, tuned = (merged(unet, v) for v in (accelerate, to_paper, accelerate + fine_tuning))
    tables: Tables = {"sums": sums(bench, mix)}
    pairs = dict.fromkeys((("0.8", "1"), tuple(best(tables["sums"]).method.split())))
    chosen = {f"{float(a)} style + {float(b)} LCM": mix(float(a), float(b)) for a, b in pairs}
    tables["few steps"] = few_steps(bench, args.cache, unet, fast)
    tables["paper cuts"] = paper_cuts(bench, drawn, mix(0.8, 0), fast, tuned, mix(0.8, 1.0))
    tables["ranks"] = ranks(bench, unet, accelerate)
    tables["by steps"] = by_steps(bench, drawn, chosen)
    response = {}
    for name in (name for name in FULL.values() if made(args.cache, name).exists()):
        full = load_guided(made(args.cache, name))
        response[f"{name}, pictures in 4 steps"] = follows(bench, unet, full)
        response |= {f"{name}, ε̂ at t = {t}": one_step_response(bench, unet, full, t) for t in (999, 749, 499, 249)}
    if args.figure:
        draw(bench, drawn, chosen, args.figure)

    print(f"{len(bench.cells)} pictures a row\n\nFew steps\n\n{by_method(tables['few steps'], STEPS)}\n")
    print(f"{in_a_row(tables['few steps'])}\n")
    print(f"Paper cuts\n\n{in_a_row(tables['paper cuts'])}\n")
    print(f"Sums, 4 steps: distance to the paper cuts (share in the style)\n\n{grid(tables['sums'])}\n")
    print(f"The LCM-LoRA at lower ranks\n\n{in_a_row(tables['ranks'])}\n")
    print(f"Sums by steps\n\n{by_method(tables['by steps'], FIGURE_STEPS)}\n")
    print(f"Findings\n\n{findings(tables, response)}\n\n{time.perf_counter() - start:.0f} s on {args.device}")
    if args.json:
        rows = {name: [asdict(row) for row in rows] for name, rows in tables.items()}
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
