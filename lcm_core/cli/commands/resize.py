"""`lcm-lora resize`: a LoRA of a lower rank."""

from __future__ import annotations

import argparse

from ..command import (
    Command,
    Result,
    add_device,
    add_output,
    add_recipes,
    add_resizing,
    checked_device,
    limits,
    progress,
)
from ..output import check_output, opened, save, spelling


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", help="a LoRA file of any dialect")
    add_resizing(parser, "only what is redundant goes")
    add_device(parser)
    add_recipes(parser)
    add_output(parser, "the input's", "the input's")


def run(args: argparse.Namespace) -> Result:
    from ...lora.combine import combine_lazily
    from ...lora.lowrank import Limits
    from ...lora.record import call_record, file_record

    check_output(args, [args.input])
    device, chosen = checked_device(args.device), limits(args)
    record = call_record("compress", [file_record(args.input)], **chosen)
    wanted = chosen if any(chosen.values()) else {"energy": 1.0}
    with opened(args, args.input) as (whole,), progress(args, "compress") as report:
        small = combine_lazily([whole], [1.0], limits=Limits(**wanted), device=device, progress=report)
        result = save(small, args.input, args, record, *spelling(args), ([whole], [1.0]))
        return {"rank_before": whole.rank, **result}


COMMAND = Command("Lowers the rank of a LoRA, and says how far that is from it.", add_arguments, run)
