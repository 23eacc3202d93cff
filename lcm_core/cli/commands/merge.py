"""`lcm-lora merge`: λ₁·a + λ₂·b + …, or another method of combining."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..command import (
    Command,
    Result,
    add_device,
    add_measure,
    add_output,
    add_recipes,
    add_resizing,
    checked_device,
    limits,
    progress,
)
from ..output import check_output, opened, save


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ...lora import METHODS
    from ...lora.method import all_options, users_of

    parser.add_argument(
        "expression",
        help="a linear expression over files, such as '0.8*style.safetensors + 1.0*lcm.safetensors'. A sign needs "
        "spaces around it; a path that begins with anything but a letter, or has spaces, stands in quotes of its own",
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        metavar="METHOD",
        default="sum",
        help="how the vectors are combined, the expression's coefficients being their weights (default sum): "
        + " ".join(f"{name}: {method.about}" for name, method in METHODS.items()).replace("%", "%%"),
    )
    for name, (option, default) in all_options().items():
        kind: dict[str, Any] = {"type": type(default), "choices": option.choices or None, "metavar": name.upper()}
        parser.add_argument(
            f"--{option.flag or name.replace('_', '-')}",
            dest=name,
            help=f"{', '.join(users_of(name))}: {option.about} (default {default})",
            **({"action": argparse.BooleanOptionalAction} if isinstance(default, bool) else kind),
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
    add_resizing(parser, "the sum keeps the sum of the files' ranks, exactly")
    add_measure(parser, "the norm, how far a sum's file is from it, and how the terms conflict")
    add_device(parser)
    add_recipes(parser)
    add_output(parser, "kohya", "float16, as trainers write")


def run(args: argparse.Namespace) -> Result:
    import torch

    from ...lora import METHODS, LoRAVector, conflicts, parse_expression, scale_blocks
    from ...lora.combine import combine_lazily
    from ...lora.lowrank import Limits
    from ...lora.method import all_options
    from ...lora.record import call_record, combine_record, file_record

    coefficients = parse_expression(args.expression)
    names, weights = list(coefficients), list(coefficients.values())
    check_output(args, coefficients)
    device, chosen = checked_device(args.device), limits(args)
    given = {name: getattr(args, name) for name in all_options() if getattr(args, name) is not None}
    options = METHODS[args.method].resolved(given)
    _check_terms(names)
    record = combine_record(args.method, [file_record(name) for name in names], weights, options, chosen)
    with opened(args, *names) as vectors, progress(args, "merge") as report:
        vector = combine_lazily(
            vectors,
            weights,
            args.method,
            limits=Limits(**chosen),
            dtype=getattr(torch, args.dtype),
            device=device,
            progress=report,
            **options,
        )
        if args.blocks:
            vector = scale_blocks(LoRAVector(dict(vector.modules), vector.diffs, vector.metadata), dict(args.blocks))
            record = call_record("blocks", [record], **dict(args.blocks))
        is_sum = args.measure and args.method == "sum" and not args.blocks
        result = save(
            vector, args.expression, args, record, args.dialect, args.dtype, (vectors, weights) if is_sum else None
        )
        if args.measure and len(vectors) > 1:
            found = conflicts(vectors, weights)
            result["cosines"] = {f"{names[i]}, {names[j]}": cosine for (i, j), cosine in found.cosines.items()}
            result["energy_cancelled"] = found.cancelled
    return result


def _check_terms(names: list[str]) -> None:
    for name in names:
        if not Path(name).exists():
            hint = "correct the path"
            if "-" in name or "/" in name:
                hint += ", or write 'a - b' and 'a / 2' with spaces: a name takes in every - and / up to the next space"
            raise ValueError(f"there is no file {name!r}; {hint}")


def _block_weight(text: str) -> tuple[str, float]:
    pattern, colon, weight = text.rpartition(":")
    try:
        return pattern.strip(), float(weight if colon and pattern.strip() else "none")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not 'pattern: weight', such as 'OUT*: 0.5'") from None


COMMAND = Command("Adds LoRA files with weights, or combines them by another method.", add_arguments, run)
