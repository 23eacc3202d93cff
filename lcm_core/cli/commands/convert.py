"""`lcm-lora convert`: a LoRA in other names or another precision."""

from __future__ import annotations

import argparse

from ..command import Command, Result, add_measure, add_output, add_recipes
from ..output import check_output, opened, save, spelling


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", help="a LoRA, LoHa or LoKr file of any dialect")
    parser.add_argument("--rank", type=int, help="rank for LoHa, LoKr and full differences (default: exact)")
    add_measure(parser, "the norm, and how far the file is from the input")
    add_recipes(parser)
    add_output(parser, "the input's", "the input's")


def run(args: argparse.Namespace) -> Result:
    from ...lora import LoRAVector
    from ...lora.metadata import changed
    from ...lora.record import call_record, file_record

    check_output(args, [args.input])
    record = call_record("convert", [file_record(args.input)], rank=args.rank)
    with opened(args, args.input, rank=args.rank) as (vector,):
        written = LoRAVector(vector.modules, vector.diffs, changed(vector.metadata))
        exact = ([vector], [1.0]) if args.measure and args.rank is None else None
        return save(written, args.input, args, record, *spelling(args), exact)


COMMAND = Command("Writes a LoRA in other names or another precision, LoHa and LoKr too.", add_arguments, run)
