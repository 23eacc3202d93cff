"""`lcm-lora convert`: a LoRA in other names or another precision."""

from __future__ import annotations

import argparse

from ..command import Command, Result, add_output
from ..output import check_output, load, save, spelling


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", help="a LoRA, LoHa or LoKr file of any dialect")
    parser.add_argument("--rank", type=int, help="rank for LoHa, LoKr and full differences (default: exact)")
    add_output(parser, "the input's", "the input's")


def run(args: argparse.Namespace) -> Result:
    from ...lora.record import call_record, file_record

    check_output(args, [args.input])
    vector = load(args.input, args.rank)
    record = call_record("convert", [file_record(args.input)], rank=args.rank)
    written = 1.0 * vector  # without the metadata that a change makes stale
    return save(written, args, record, *spelling(args), ([vector], [1.0]) if args.rank is None else None)


COMMAND = Command("Writes a LoRA in other names or another precision, LoHa and LoKr too.", add_arguments, run)
