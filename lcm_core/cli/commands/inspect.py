"""`lcm-lora inspect`: what is in LoRA files."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import TYPE_CHECKING

from ..command import Command, Result, add_recipes, recipes_of
from ..output import header, warn_of_notes

if TYPE_CHECKING:
    from ...accelerators import Recipe
    from ...lora import LoRAVector
    from ...lora.file import LoRAFile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="file", help="LoRA files; of two or more also their cosines")
    add_recipes(parser)
    parser.add_argument("--norms", action="store_true", help="also the norms, whole and by block, which takes longer")


def run(args: argparse.Namespace) -> Result:
    from ...lora import LoRAVector, block_cosines
    from ...lora.file import LoRAFile, named

    result: Result = {"files": []}
    recipes = recipes_of(args)
    for path in args.files:
        file = LoRAFile.scan(path)
        with named(path):
            result["files"].append(_description(path, file, recipes))
    if len(args.files) == 1 and not args.norms:
        return result
    vectors = {path: LoRAVector.load(path) for path in args.files}
    if args.norms:
        for found, vector in zip(result["files"], vectors.values(), strict=True):
            found |= _norms(vector)
    if len(vectors) > 1:
        result["cosines"] = [{"a": a, "b": b, **_cosine(vectors[a], vectors[b])} for a, b in combinations(vectors, 2)]
    if len(vectors) == 2 and result["cosines"][0]["cosine"] is not None:
        result["cosine_by_block"] = block_cosines(*vectors.values())
    return result


def _description(path: str, file: LoRAFile, recipes: Mapping[str, Recipe]) -> Result:
    from ...accelerators import described
    from ...lora import architecture
    from ...lora.kinds import kinds_of
    from ...lora.record import EXPRESSION
    from ...lora.sampling import recipe_of_path

    warn_of_notes(path, file.notes)
    dialect, kinds, dtypes = header(file)
    ranks = [
        (module, rank)
        for module in file.modules
        for kind in kinds_of(module)
        if (rank := kind.rank(module)) is not None
    ]
    found = recipe_of_path(path, file, recipes)
    return {
        "file": path,
        "architecture": architecture(file.sizes, file.lasting_metadata),
        "expression": file.metadata.get(EXPRESSION),
        "dialect": dialect,
        "kinds": kinds,
        "dtypes": dtypes,
        "modules": dict(Counter(module.name.partition(".")[0] for module in file.modules)),
        "modules_by_rank": _counts(rank for _, rank in ranks),
        "modules_by_alpha": _counts(module.alpha(rank) for module, rank in ranks),
        "parameters": sum(
            tensor.numel() for m in file.modules for role, tensor in m.tensors.items() if role != "alpha"
        ),
        "accelerator": found.recipe and found.recipe.label,
        "recognized": found.why,
        "recipe": found.recipe and {"evidence": found.evidence, **described(found.recipe)},
        "note": (found.recipe and found.recipe.note) or None,
    }


def _norms(vector: LoRAVector) -> Result:
    from ...lora import block_norms

    return {"norm": vector.norm(), "norm_by_block": block_norms(vector)}


def _counts(values: Iterable[float]) -> dict[str, int]:
    return {f"{value:g}": count for value, count in sorted(Counter(values).items())}


def _cosine(a: LoRAVector, b: LoRAVector) -> Result:
    try:
        return {"cosine": a.cosine(b)}
    except ValueError as error:
        return {"cosine": None, "error": str(error)}


COMMAND = Command("Says what is in LoRA files of any kind, and how alike they are.", add_arguments, run)
