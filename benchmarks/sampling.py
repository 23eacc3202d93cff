"""Speed of the sampling nodes inside ComfyUI on the pocket model, as a table.

python benchmarks/sampling.py COMFYUI BASE [--repeats 9] [--size 512] [--frames 32] [--json FILE]

COMFYUI and BASE are a ComfyUI folder and its base directory; `python tools/run.py demo` makes .host/comfyui and
.host/base. Run it with ComfyUI's Python. What is compared runs in turns in one process, on one MODEL; the
median is shown, and the middle half of the repeats; a ratio is of turns side by side:

- node overhead: LCM Sampler against core's KSampler (`lcm`, `simple`), both 4 steps at cfg 1, and what each spends
  outside the UNet;
- speed-up: LCM Sampler, 4 steps at cfg 1, against KSampler (`euler`, `normal`), 25 steps at cfg 4, beside the ratio of
  UNet evaluations;
- stream: LCM Stream Batch against LCM Sampler frame by frame, with the number of UNet calls;
- import: what loading this pack adds to ComfyUI's start.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from tools.inprocess import PACK, load_host, load_pack  # noqa: E402


def in_turns(repeats: int, *acts: Callable[[], object]) -> list[list[float]]:
    """The seconds of each act, run in turns, forth and back, after one unmeasured turn."""
    seconds: list[list[float]] = [[] for _ in acts]
    for turn in range(repeats + 1):
        for act, kept in list(zip(acts, seconds, strict=True))[:: 1 - turn % 2 * 2]:
            start = time.perf_counter()
            act()
            if turn:
                kept.append(time.perf_counter() - start)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median of repeats, and the middle half of them."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "from": low, "to": high}


def import_seconds(repeats: int) -> list[float]:
    """Seconds to import the pack with what the host has imported already."""

    def load() -> None:
        for name in [name for name in sys.modules if name == PACK or name.startswith(f"{PACK}.")]:
            del sys.modules[name]
        load_pack()

    return in_turns(repeats, load)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--size", type=int, default=512, help="of the picture, in pixels")
    parser.add_argument("--frames", type=int, default=32, help="of 64 pixels, for the stream")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()

    host = load_host(args.comfyui, args.base)
    model, clip, _ = host.run("CheckpointLoaderSimple", ckpt_name="pocket.safetensors")
    positive, negative = (host.run("CLIPTextEncode", clip=clip, text=text)[0] for text in ("cat", ""))
    (model, *_) = host.run("LCMLoRA_Loader", model=model, lora_name="pocket_lcm.safetensors")
    calls, inside = 0, 0.0

    def counted(apply_model, args):
        nonlocal calls, inside
        start = time.perf_counter()
        output = apply_model(args["input"], args["timestep"], **args["c"])
        calls, inside = calls + 1, inside + time.perf_counter() - start
        return output

    model.set_model_unet_function_wrapper(counted)
    shared = {"model": model, "positive": positive, "negative": negative, "seed": 1}
    picture = torch.zeros(1, 4, args.size // 8, args.size // 8)
    frames = torch.zeros(args.frames, 4, 8, 8)

    def lcm(samples: torch.Tensor = picture, node: str = "LCMLoRA_Sampler") -> None:
        host.run(node, latent={"samples": samples}, **shared)

    def core(steps: int, cfg: float, sampler: str, scheduler: str) -> None:
        host.run(
            "KSampler", latent_image={"samples": picture}, steps=steps, cfg=cfg, sampler_name=sampler,
            scheduler=scheduler, denoise=1.0, **shared,
        )  # fmt: skip

    def one_by_one() -> None:
        for frame in frames.split(1):
            lcm(frame)

    def calls_of(act: Callable[[], None]) -> float:
        before = calls
        act()
        return (calls - before) / args.frames

    def streamed() -> None:
        lcm(frames, "LCMLoRA_StreamBatch")

    def outside(act: Callable[[], None]) -> dict[str, float]:
        seconds = []
        for _ in range(args.repeats):
            before, start = inside, time.perf_counter()
            act()
            seconds.append(time.perf_counter() - start - (inside - before))
        return spread(seconds)

    def core_lcm() -> None:
        core(4, 1.0, "lcm", "simple")

    def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
        return spread([a / b for a, b in zip(ours, theirs, strict=True)])

    node, ksampler = in_turns(args.repeats, lcm, core_lcm)
    few, many = in_turns(max(2, args.repeats // 3), lcm, lambda: core(25, 4.0, "euler", "normal"))
    single, stream = in_turns(args.repeats, one_by_one, streamed)
    result = {
        "LCM Sampler, s": spread(node),
        "KSampler lcm, s": spread(ksampler),
        "overhead ratio": ratio(node, ksampler),
        "LCM Sampler outside the UNet, s": outside(lcm),
        "KSampler lcm outside the UNet, s": outside(core_lcm),
        "25 guided steps, s": spread(many),
        "speed-up": ratio(many, few),
        "of the ratio of evaluations": ratio([seconds / (50 / 4) for seconds in many], few),
        "frames one by one, s a frame": spread([seconds / args.frames for seconds in single]),
        "frames streamed, s a frame": spread([seconds / args.frames for seconds in stream]),
        "UNet calls a frame, one by one": calls_of(one_by_one),
        "UNet calls a frame, streamed": calls_of(streamed),
        "import, ms": spread([1000 * seconds for seconds in import_seconds(args.repeats)]),
        "distillation imported": any(name.startswith(f"{PACK}.lcm_core.distill") for name in sys.modules),
    }
    for name, value in result.items():
        if isinstance(value, dict):
            value = "{median:.4g} ({from:.4g} … {to:.4g})".format(**value)
        print(f"{name:34} {value}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
