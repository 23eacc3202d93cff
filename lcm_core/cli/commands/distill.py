"""`lcm-lora distill`: an LCM-LoRA of a checkpoint; the work is `lcm_core.distill.command`'s."""

from __future__ import annotations

import argparse
from functools import partial

from ..command import DTYPES, Command, Result, progress
from ..output import check_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", required=True, help="the teacher: a folder in diffusers' layout, or a .safetensors checkpoint"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", help="a folder of pictures with captions, name.txt beside each or metadata.jsonl")
    source.add_argument("--prompts", help="a text file, a prompt a line: the teacher draws the pictures itself")
    parser.add_argument("-o", "--out", dest="output", required=True, help="the LoRA to write, .safetensors")
    parser.add_argument("--config", help="a TOML file of settings: those below and DistillConfig's")
    parser.add_argument("--rank", type=int, help="rank of the LoRA (default 64)")
    parser.add_argument("--batch", type=int, help="latents a step, over all processes (default 4)")
    parser.add_argument("--size", type=int, help="side in pixels of a square with the pictures' area (default 512)")
    parser.add_argument("--steps", type=int, help="training steps (default 1000)")
    parser.add_argument("--learning-rate", dest="learning_rate", type=float, help="of AdamW (default 1e-4)")
    parser.add_argument("--seed", type=int, help="fixes everything random (default 0)")
    parser.add_argument("--teacher-steps", type=int, default=25, help="DDIM steps of --prompts' pictures (default 25)")
    parser.add_argument("--device", help="such as cuda or cpu (default: cuda if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the frozen weights (default float32)")
    parser.add_argument("--checkpointing", action="store_true", help="less memory for a third more time")
    parser.add_argument("--state", help="where the training's state is kept (default: beside the output)")
    parser.add_argument("--resume", action="store_true", help="go on from the state")
    parser.add_argument("--force", action="store_true", help="replace the output if it is there")


def run(args: argparse.Namespace) -> Result:
    from ...distill import command

    check_output(args, [])
    return command.run(args, partial(progress, args))


COMMAND = Command("Makes an LCM-LoRA of a Stable Diffusion checkpoint.", add_arguments, run)
