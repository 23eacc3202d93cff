"""`lcm-lora merge`: λ₁·a + λ₂·b + …, or another method of combining."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..command import Command, Result, add_limits, add_output, progress
from ..output import check_output, load, save

if TYPE_CHECKING:
    from ...lora import LoRAVector

METHODS = ("sum", "project_out", "slerp", "magnitude_prune", "ties", "dare_linear", "dare_ties")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "expression",
        help="a linear expression over files, such as '0.8*style.safetensors + 1.0*lcm.safetensors'. A sign needs "
        "spaces around it; a path that begins with anything but a letter, or has spaces, stands in quotes of its own",
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="sum",
        help="how the vectors are combined, the expression's coefficients being their weights (default: sum, exact)",
    )
    parser.add_argument("--density", type=float, help="share of the values that pruning keeps, in (0, 1] (default 0.5)")
    parser.add_argument("--seed", type=int, help="of the draws of dare_linear and dare_ties (default 0)")
    parser.add_argument("--t", type=float, help="slerp's place from the first file, 0, to the second, 1 (default 0.5)")
    parser.add_argument("--majority-sign", choices=("total", "frequency"), help="the election of ties and dare_ties")
    parser.add_argument(
        "--per-module", action="store_true", default=None, help="project_out module by module, not over the whole"
    )
    parser.add_argument(
        "--blocks",
        type=_block_weight,
        action="extend",
        nargs="+",
        metavar="'PATTERN: WEIGHT'",
        help="weights of blocks (BASE, IN00-IN11, M00, OUT00-OUT11, other) or modules by name, such as 'OUT*: 0.5' "
        "'*.attn2.*: 0'; the first pattern that matches counts",
    )
    add_limits(parser, "the sum keeps the sum of the files' ranks, exactly")
    add_output(parser, "kohya", "float16, as trainers write")


def run(args: argparse.Namespace) -> Result:
    import torch

    from ...lora import combine, parse_expression, scale_blocks
    from ...lora.record import call_record, file_record, sum_record

    coefficients = parse_expression(args.expression)
    check_output(args, coefficients)
    weights = list(coefficients.values())
    vectors = [_load_term(name) for name in coefficients]
    records = [file_record(name) for name in coefficients]
    given = {
        "density": args.density,
        "seed": args.seed,
        "t": args.t,
        "majority_sign_method": args.majority_sign,
        "per_module": args.per_module,
    }
    options = {name: value for name, value in given.items() if value is not None}
    limits = {"rank": args.rank, "energy": args.energy}
    with progress(args, "merge") as report:
        vector = combine(
            vectors, weights, args.method, progress=report, dtype=getattr(torch, args.dtype), **limits, **options
        )
    if args.method == "sum":
        record = sum_record(records, weights)
    else:
        record = call_record(args.method, records, weights, **options)
    if any(limits.values()):
        record = call_record("compress", [record], **limits)
    if not args.blocks:
        exact = (vectors, weights) if args.method == "sum" else None
        return save(vector, args, record, args.dialect, args.dtype, exact)
    record = call_record("blocks", [record], **dict(args.blocks))
    return save(scale_blocks(vector, dict(args.blocks)), args, record, args.dialect, args.dtype)


def _load_term(name: str) -> LoRAVector:
    try:
        return load(name)
    except FileNotFoundError as error:
        hint = "correct the path"
        if "-" in name or "/" in name:
            hint += ", or write 'a - b' and 'a / 2' with spaces: a name takes in every - and / up to the next space"
        raise ValueError(f"there is no file {name!r}; {hint}") from error


def _block_weight(text: str) -> tuple[str, float]:
    pattern, colon, weight = text.rpartition(":")
    try:
        return pattern.strip(), float(weight if colon and pattern.strip() else "none")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not 'pattern: weight', such as 'OUT*: 0.5'") from None


COMMAND = Command("Adds LoRA files with weights, or combines them by another method.", add_arguments, run)
