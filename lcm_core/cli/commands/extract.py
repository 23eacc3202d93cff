"""`lcm-lora extract`: a LoRA of the difference of two checkpoints."""

from __future__ import annotations

import argparse

from ..command import Command, Result, add_device, add_limits, add_output, checked_device, progress
from ..output import check_output, save


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tuned", help="the fine-tuned checkpoint, .safetensors")
    parser.add_argument("base", help="the checkpoint that it was tuned from")
    add_limits(parser, "one of the two is needed")
    parser.add_argument("--diffs", action="store_true", help="keep what changed in biases and norms too")
    add_device(parser)
    add_output(parser, "kohya", "float16, as trainers write")


def run(args: argparse.Namespace) -> Result:
    from ...lora import extract
    from ...lora.record import call_record, file_record, sum_record
    from ...text import listed

    check_output(args, [args.tuned, args.base])
    device = checked_device(args.device)
    with progress(args, "extract") as report:
        vector, found = extract(
            args.tuned, args.base, args.rank, args.energy, diffs=args.diffs, device=device, progress=report
        )
    difference = sum_record([file_record(args.tuned), file_record(args.base)], [1, -1])
    record = call_record("extract", [difference], rank=args.rank, energy=args.energy)
    return {
        **save(vector, args.tuned, args, record, args.dialect, args.dtype),
        "energy_held": found.energy,
        "parameters_equal": found.equal,
        "parameters_left_out": len(found.left_out),
        "left_out": listed(found.left_out) or None,
    }


COMMAND = Command("Makes a LoRA of the difference of two checkpoints.", add_arguments, run)
