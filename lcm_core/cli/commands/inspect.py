"""`lcm-lora inspect`: what is in LoRA files."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING

from ..command import Command, Result
from ..output import header, load

if TYPE_CHECKING:
    from ...lora import LoRAVector


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="file", help="LoRA files; of two or more also their cosines")


def run(args: argparse.Namespace) -> Result:
    from ...lora import block_cosines

    vectors = {path: load(path) for path in args.files}
    result: Result = {"files": [_description(path, vector) for path, vector in vectors.items()]}
    if len(vectors) > 1:
        result["cosines"] = [{"a": a, "b": b, **_cosine(vectors[a], vectors[b])} for a, b in combinations(vectors, 2)]
    if len(vectors) == 2 and result["cosines"][0]["cosine"] is not None:
        result["cosine_by_block"] = block_cosines(*vectors.values())
    return result


def _description(path: str, vector: LoRAVector) -> Result:
    from ...lora import architecture, block_norms
    from ...lora.record import EXPRESSION

    dialect, kinds, dtypes = header(path)
    factors = vector.modules.values()
    return {
        "file": path,
        "architecture": architecture({name: f.shape for name, f in vector.modules.items()}, vector.metadata),
        "expression": vector.metadata.get(EXPRESSION),
        "dialect": dialect,
        "kinds": kinds,
        "dtypes": dtypes,
        "modules": dict(Counter(name.partition(".")[0] for name in vector.modules)),
        "diffs": len(vector.diffs) or None,
        "modules_by_rank": _counts(f.rank for f in factors),
        "modules_by_alpha": _counts(f.alpha for f in factors),
        "parameters": vector.parameters,
        "norm": vector.norm(),
        "norm_by_block": block_norms(vector),
    }


def _counts(values: Iterator[float]) -> dict[str, int]:
    return {f"{value:g}": count for value, count in sorted(Counter(values).items())}


def _cosine(a: LoRAVector, b: LoRAVector) -> Result:
    try:
        return {"cosine": a.cosine(b)}
    except ValueError as error:
        return {"cosine": None, "error": str(error)}


COMMAND = Command("Says what is in LoRA files, and how alike they are.", add_arguments, run)
