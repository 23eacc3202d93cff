"""A distillation step beside the step of diffusers' LCM-LoRA script: time, peak memory and loss, as a table.

python benchmarks/distillation.py [--dtype bfloat16] [--width 0.5] [--rank 32] [--batch 2] [--latent 16] [--turns 7]

On the CPU, with one UNet of SD1.5's blocks (`--width` of its channels, random weights), the same first factors, batches
and draws:

- ours: `lcm_core.distill.distill`, one copy of the frozen weights, in --dtype, with float32 factors beside them; the
  teacher's cond and uncond in one batch;
- script: what diffusers' examples/consistency_distillation/train_lcm_distill_lora_sd_wds.py does with its defaults, the
  teacher as a second model with a pass for cond and one for uncond, both models in float32, the LoRA by PEFT, torch's
  AdamW.

With bfloat16 both run in mixed precision (autocast, `--mixed_precision bf16` of the script), with float32 neither does.
Each is a process of its own. In turns, so that all meet the same load, ours makes a step, the script makes one, and
ours makes the UNet passes of a step alone; medians count. Memory is the peak resident size of the process (ru_maxrss),
less what was resident after the imports.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from lcm_core.distill import LCM_TARGETS, DistillConfig, distill, inject_lora  # noqa: E402
from lcm_core.distill.randomness import draw_step  # noqa: E402
from lcm_core.schedule import NoiseSchedule  # noqa: E402

SCHEDULE = NoiseSchedule.scaled_linear()
PASSES = ("student forward and backward", "teacher, doubled batch", "target")


def make_unet(args: argparse.Namespace) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    channels = [int(args.width * c) for c in (320, 640, 1280, 1280)]
    groups = int(32 * args.width)
    unet = UNet2DConditionModel(block_out_channels=channels, cross_attention_dim=768, norm_num_groups=groups)
    return unet.requires_grad_(False)


def batch(args: argparse.Namespace, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, and what stands for the text of prompts and of the empty prompt."""
    generator = torch.Generator().manual_seed(step)
    z = torch.randn(args.batch, 4, args.latent, args.latent, generator=generator)
    cond, uncond = torch.randn(2, args.batch, 77, 768, generator=generator)
    return z, cond, uncond


def first_factor(module: str, shape: torch.Size) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(module.encode()))) * 0.02


def ours(args: argparse.Namespace, passes: dict[str, Callable[[], object]]) -> Iterator[float]:
    unet = make_unet(args).to(getattr(torch, args.dtype))
    adapter = inject_lora(unet, LCM_TARGETS, args.rank)
    for name, down in zip(adapter.names, adapter.down, strict=True):
        down.data = first_factor(name, down.shape)

    def model(x: Tensor, t: Tensor, cond: tuple[Tensor, ...], omega: Tensor | None = None) -> Tensor:
        return unet(x, t, *cond).sample

    def batches(step: int) -> tuple[Tensor, tuple[Tensor], tuple[Tensor]]:
        z, cond, uncond = batch(args, step)
        return z, (cond,), (uncond,)

    z, cond, uncond = batch(args, 0)
    t = torch.full((args.batch,), 500)
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bfloat16")

    def student() -> None:
        with mixed:
            output = model(z, t, (cond,))
        output.float().square().mean().backward()
        for p in adapter.parameters():
            p.grad = None

    def teacher() -> None:
        with torch.no_grad(), mixed, adapter.using(None):
            model(torch.cat([z, z]), torch.cat([t, t]), (torch.cat([cond, uncond]),))

    def target() -> None:
        with torch.no_grad(), mixed:
            model(z, t, (cond,))

    passes |= dict(zip(PASSES, (student, teacher, target), strict=True))
    autocast = "bfloat16" if args.dtype == "bfloat16" else None
    config = DistillConfig(steps=args.turns + 1, weight_decay=1e-2, autocast=autocast)
    for progress in distill(model, adapter, batches, config, schedule=SCHEDULE):
        yield progress.loss


def script(args: argparse.Namespace, passes: dict[str, Callable[[], object]]) -> Iterator[float]:
    from peft import LoraConfig, get_peft_model

    teacher_unet = make_unet(args)
    unet = get_peft_model(
        make_unet(args), LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=list(LCM_TARGETS))
    )
    for name, p in unet.named_parameters():
        if ".lora_A." in name:
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight")
            p.data = first_factor(module, p.shape)
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2)
    root_abar, root_rest = (v.float() for v in (SCHEDULE.alphas_cumprod.sqrt(), (1 - SCHEDULE.alphas_cumprod).sqrt()))

    def at(table: Tensor, t: Tensor) -> Tensor:
        return table[t][:, None, None, None]

    def noise_of(model: torch.nn.Module, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bfloat16"):
            return model(x, t, encoder_hidden_states=text).sample.float()

    def x0_of(noise: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return (x - at(root_rest, t) * noise) / at(root_abar, t)

    def consistent(noise: Tensor, x: Tensor, t: Tensor) -> Tensor:
        scaled = 10.0 * t[:, None, None, None]
        return 0.25 / (scaled**2 + 0.25) * x + scaled / (scaled**2 + 0.25) ** 0.5 * x0_of(noise, x, t)

    for step in range(args.turns + 1):
        z, cond, uncond = batch(args, step)
        draw = draw_step(DistillConfig(), z, SCHEDULE, step)
        t, t_next, w = draw.t, draw.t_next, draw.omega.float()[:, None, None, None]
        x = at(root_abar, t) * z + at(root_rest, t) * draw.noise
        predicted = consistent(noise_of(unet, x, t, cond), x, t)
        with torch.no_grad():
            with_text, without = noise_of(teacher_unet, x, t, cond), noise_of(teacher_unet, x, t, uncond)
            x0, x0_without = x0_of(with_text, x, t), x0_of(without, x, t)
            guided_x0, guided_noise = x0 + w * (x0 - x0_without), with_text + w * (with_text - without)
            x_next = at(root_abar, t_next) * guided_x0 + at(root_rest, t_next) * guided_noise
            goal = consistent(noise_of(unet, x_next, t_next, cond), x_next, t_next)
        loss = (((predicted - goal) ** 2 + 0.001**2).sqrt() - 0.001).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss.item()


def work(variant: Callable, args: argparse.Namespace, parent: Connection) -> None:
    """A process that does what it is told, `step` or a pass, and answers with (seconds, loss); `memory` ends it."""
    import diffusers
    import peft  # noqa: F401

    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    before = pages * resource.getpagesize()
    passes: dict[str, Callable[[], object]] = {}
    steps = variant(args, passes)
    while (name := parent.recv()) != "memory":
        start = time.perf_counter()
        loss = next(steps) if name == "step" else passes[name]()
        parent.send((time.perf_counter() - start, loss))
    parent.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 1e6)


def ask(pipe: Connection, message: str) -> Any:
    pipe.send(message)
    return pipe.recv()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--width", type=float, default=0.5, help="of SD1.5's channels")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--latent", type=int, default=16, help="side of the latents")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()

    spawn = multiprocessing.get_context("spawn")
    pipes, children = {}, []
    for variant in (ours, script):
        pipes[variant.__name__], theirs = spawn.Pipe()
        children.append(spawn.Process(target=work, args=(variant, args, theirs), daemon=True))
        children[-1].start()
    turns = []
    for _ in range(args.turns + 1):
        turns.append({name: ask(pipe, "step") for name, pipe in pipes.items()})
        turns[-1] |= {name: ask(pipes["ours"], name) for name in PASSES}
    memory = {name: ask(pipe, "memory") for name, pipe in pipes.items()}
    for child in children:
        child.join()

    seconds = {name: statistics.median(turn[name][0] for turn in turns[1:]) for name in turns[0]}
    apart = max(abs(turn["ours"][1] / turn["script"][1] - 1) for turn in turns)
    result = {
        **{f"{name} alone, s": seconds[name] for name in PASSES},
        "our step, s": seconds["ours"],
        "of the sum of its passes": seconds["ours"] / sum(seconds[name] for name in PASSES),
        "the script's step, s": seconds["script"],
        "speed-up": seconds["script"] / seconds["ours"],
        "our peak memory, MB": memory["ours"],
        "the script's, MB": memory["script"],
        "of the script's": memory["ours"] / memory["script"],
        f"largest difference of a loss in {len(turns)} steps": apart,
    }
    for name, value in result.items():
        print(f"{name:44} {value:.4g}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
