"""`lcm-lora distill`: an LCM-LoRA of a checkpoint; the work is `lcm_core.distill.command`'s."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from ..command import DTYPES, Command, Result, progress
from ..output import check_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ...distill import OBJECTIVES
    from ...distill.objective import all_options, users_of
    from ...distill.optimizers import OPTIMIZERS
    from ...distill.settings import CHOICES, PRESETS
    from ...distill.watch import TRACKERS
    from ...solvers import SOLVERS

    parser.add_argument(
        "--checkpoint", required=True, help="the teacher: a folder in diffusers' layout, or a .safetensors checkpoint"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--data",
        help="a folder of pictures with captions, name.txt beside each or metadata.jsonl; or tar files of webdataset, "
        "as a folder of them or such as 'data/{000..099}.tar'",
    )
    source.add_argument("--prompts", help="a text file, a prompt a line: the teacher draws the pictures itself")
    parser.add_argument("-o", "--out", dest="output", required=True, help="the LoRA to write, .safetensors")
    parser.add_argument("--preset", choices=PRESETS, help="settings to begin with; what you give counts before them")
    parser.add_argument("--config", help="a TOML file of settings: those below and DistillConfig's")
    parser.add_argument(
        "--objective",
        choices=OBJECTIVES,
        metavar="OBJECTIVE",
        help="what is learned (default lcd): "
        + " ".join(f"{name}: {o.about}" for name, o in OBJECTIVES.items()).replace("%", "%%"),
    )
    for name, (option, default) in all_options().items():
        kind: dict[str, Any] = {"type": type(default), "choices": option.choices or None, "metavar": name.upper()}
        parser.add_argument(
            f"--{option.flag or name.replace('_', '-')}",
            dest=f"option {name}",
            help=f"{', '.join(users_of(name))}: {option.about} (default {default})",
            **({"action": argparse.BooleanOptionalAction} if isinstance(default, bool) else kind),
        )
    parser.add_argument("--warm-start", type=int, help="first steps of guided regression alone (default 0)")
    parser.add_argument("--solver", choices=SOLVERS, help="the teacher's step (default ddim; of a flow Euler's)")
    parser.add_argument(
        "--full",
        action=argparse.BooleanOptionalAction,
        help="train all weights: a full LCM, of Stable Diffusion with ω as an input (default rate 1e-6, target_decay "
        "0.95); the output is the network in diffusers' names",
    )
    parser.add_argument(
        "--start", metavar="LORA", help="a LoRA to add to the checkpoint first, such as an LCM-LoRA for --objective lcf"
    )
    parser.add_argument("--rank", type=int, help="rank of the LoRA (default 64)")
    parser.add_argument("--batch", type=int, help="latents a step, over all processes (default 4)")
    parser.add_argument("--size", type=int, help="side in pixels of a square with the pictures' area (default 512)")
    parser.add_argument(
        "--cache", metavar="FOLDER", help="where latents and captions are kept once they are encoded, for other "
        "trainings too (default: beside the output, .cache)",
    )  # fmt: skip
    parser.add_argument(
        "--views", type=int, help="how often each picture is encoded, cropped or flipped anew (default 1)"
    )
    parser.add_argument("--crop", choices=("center", "random"), help="what is kept of a picture (default center)")
    parser.add_argument(
        "--flip", action=argparse.BooleanOptionalAction, default=None, help="every other view is mirrored, or with one "
        "view half of the pictures (default no)",
    )  # fmt: skip
    parser.add_argument(
        "--empty-share", type=float, metavar="SHARE", help="of the prompts that are empty, for a model that is guided "
        "afterwards too (default 0)",
    )  # fmt: skip
    parser.add_argument("--encode-batch", type=int, help="pictures that are encoded, or drawn, at once (default 8)")
    parser.add_argument("--frames", type=int, help="of the videos that a video model draws for --prompts (default 1)")
    parser.add_argument(
        "--omega", type=float, nargs=2, metavar=("LOW", "HIGH"), help="the guidance to learn (default 5 15; of a model "
        "with a guidance of its own 0 0); a warning says what would fit the teacher if this is far off",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, help="training steps (default 1000)")
    parser.add_argument("--learning-rate", dest="learning_rate", type=float, help="of the optimizer (default 1e-4)")
    parser.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        help="default adamw; rates that suit: " + ", ".join(f"{name} {o.rate}" for name, o in OPTIMIZERS.items()),
    )
    parser.add_argument(
        "--ema-decay", dest="ema_decay", type=float, help="the result is this average of the weights, such as 0.99"
    )
    parser.add_argument("--seed", type=int, help="fixes everything random (default 0)")
    parser.add_argument("--teacher-steps", type=int, default=25, help="DDIM steps of --prompts' pictures (default 25)")
    parser.add_argument("--device", help="such as cuda or cpu (default: cuda if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, help="of the frozen weights (default float32)")
    parser.add_argument(
        "--storage",
        choices=CHOICES["storage"],
        help="float8 keeps frozen weights of blocks in 8 bits (default dtype)",
    )
    parser.add_argument(
        "--checkpointing", action=argparse.BooleanOptionalAction, help="less memory for a third more time"
    )
    parser.add_argument("--estimate", action="store_true", help="say what memory the training needs, and stop")
    parser.add_argument(
        "--validate",
        metavar="SOURCE",
        help="a folder of pictures with captions, or a file of prompts, to judge the training by: scores and pictures "
        "beside the output",
    )
    parser.add_argument("--validate-every", type=int, help="steps between two looks (default 100)")
    parser.add_argument("--track", choices=TRACKERS, action="append", default=[], help="also log there, by Accelerate")
    parser.add_argument(
        "--keep-every",
        type=int,
        help="write what is learned every so many steps, to NAME-000100.safetensors (0: never)",
    )
    parser.add_argument("--state", help="where the training's state is kept (default: beside the output)")
    parser.add_argument("--resume", action="store_true", help="go on from the state")
    parser.add_argument("--force", action="store_true", help="replace the output if it is there")


def run(args: argparse.Namespace) -> Result:
    from ...distill import command

    check_output(args, [])
    return command.run(args, partial(progress, args))


COMMAND = Command("Makes an LCM-LoRA of a Stable Diffusion checkpoint.", add_arguments, run)
