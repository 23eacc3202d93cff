"""`lcm-lora resize`: a LoRA of a lower rank."""

from __future__ import annotations

import argparse

from ..command import Command, Result, add_limits, add_output, progress
from ..output import check_output, load, save, spelling


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", help="a LoRA file of any dialect")
    add_limits(parser, "only what is redundant goes")
    add_output(parser, "the input's", "the input's")


def run(args: argparse.Namespace) -> Result:
    from ...lora import combine
    from ...lora.record import call_record, file_record

    check_output(args, [args.input])
    whole = load(args.input)
    energy = 1.0 if args.rank is None and args.energy is None else args.energy
    with progress(args, "compress") as report:
        vector = combine([whole], [1.0], rank=args.rank, energy=energy, progress=report)
    record = call_record("compress", [file_record(args.input)], rank=args.rank, energy=args.energy)
    return {"rank_before": whole.rank, **save(vector, args, record, *spelling(args), ([whole], [1.0]))}


COMMAND = Command("Lowers the rank of a LoRA, and says how far that is from it.", add_arguments, run)
