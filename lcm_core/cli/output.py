"""The file that a command writes: what is refused, its names and precision, and what is said of it."""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command import Result, recipes_of

if TYPE_CHECKING:
    from ..lora import LoRAVector
    from ..lora.file import LoRAFile


def check_output(args: argparse.Namespace, inputs: Sequence[str] | Mapping[str, Any]) -> None:
    """Refuses, before any work, an output that could not or should not be written.

    Raises ValueError for another suffix than .safetensors, for an input or a file that is there without --force, and
    for PEFT's own file name beside a config that would be read with it; FileNotFoundError for a missing folder.
    """
    output = Path(args.output)
    if output.suffix.lower() != ".safetensors":
        raise ValueError(f"{output} has suffix {output.suffix!r}; a LoRA is written as .safetensors only")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"the folder {output.parent} does not exist; make it first")
    if output.exists() and not args.force:
        is_input = any(Path(path).exists() and output.samefile(path) for path in inputs)
        what = "is an input" if is_input else "is there already"
        raise ValueError(f"{output} {what}; choose another name, or replace it with --force")
    if output.is_dir():
        raise ValueError(f"{output} is a folder; give the name of a file")
    if output.name == "adapter_model.safetensors" and output.with_name("adapter_config.json").exists():
        raise ValueError(
            f"{output} would be read with the alpha of the adapter_config.json beside it; choose another name or folder"
        )


@contextmanager
def opened(args: argparse.Namespace, *paths: str, rank: int | None = None) -> Iterator[list[LoRAVector]]:
    """LoRA files as vectors that are read module by module, each with how it is sampled, where it is an accelerator by
    the recipes that `args` knows.

    What their reading had to assume are warnings.
    """
    from ..lora import LoRAVector
    from ..lora.file import LoRAFile
    from ..lora.lazy import open_vector
    from ..lora.sampling import recipe_of_path, recorded

    recipes = recipes_of(args)
    with ExitStack() as stack:
        vectors = []
        for path in paths:
            read = stack.enter_context(open_vector(path, rank))
            metadata = {**read.metadata, **recorded(recipe_of_path(path, LoRAFile.scan(path), recipes))}
            vectors.append(LoRAVector(read.modules, read.diffs, metadata, read.notes))
            warn_of_notes(path, read.notes)
        yield vectors


def warn_of_notes(path: str, notes: Sequence[str]) -> None:
    for note in notes:
        logging.getLogger(__name__).warning("%s: %s", path, note)


def save(
    vector: LoRAVector,
    source: str,
    args: argparse.Namespace,
    record: Mapping[str, str],
    dialect: str,
    dtype: str,
    exact: tuple[Sequence[LoRAVector], Sequence[float]] | None = None,
) -> Result:
    """Writes the output, a module at a time where the vector makes them so, and says what is in it.

    source: what an error about the vector's names calls it. With `exact`, the terms and weights of a sum, also its norm
    and how far it is from them, rounding included.
    """
    import torch

    from ..accelerators import read_sampling
    from ..lora.file import named
    from ..lora.kinds import role_of
    from ..lora.lazy import open_vector
    from ..lora.peft_config import ALPHA_IS_RANK
    from ..lora.record import EXPRESSION
    from ..lora.saving import keys_of, tensors_of
    from ..lora.terms import sum_norm
    from ..streaming import write_streamed

    tally: Counter[str] = Counter()

    def counted() -> Iterator[tuple[str, torch.Tensor]]:
        for key, tensor in tensors_of(vector, dialect, getattr(torch, dtype)):
            role = role_of(key)
            tally["modules"] += role == "down"
            tally["diffs"] += role in ("diff", "diff_b")
            tally["parameters"] += tensor.numel() if tensor.ndim else 0
            tally["rank"] = max(tally["rank"], len(tensor) if role == "down" else 0)
            yield key, tensor
        if not tally["modules"] + tally["diffs"]:
            raise ValueError("nothing is left to write: every module has weight 0; correct the weights")

    with named(source):
        keys = keys_of(vector, dialect)
    try:
        read_sampling(vector.metadata)
    except ValueError as error:
        logging.getLogger(__name__).warning("%s: %s", args.output, error)
    metadata = {**vector.metadata, **(ALPHA_IS_RANK if dialect == "peft" else {}), **record}
    try:
        write_streamed(args.output, keys, counted(), metadata, replace=args.force)
    except FileExistsError as exists:
        raise ValueError(
            f"{args.output} was made by another program meanwhile; choose another name, or replace it with --force"
        ) from exists
    result: Result = {
        "output": args.output,
        "expression": record[EXPRESSION],
        "modules": tally["modules"],
        "diffs": tally["diffs"] or None,
        "rank": tally["rank"],
        "parameters": tally["parameters"],
        "dialect": dialect,
        "dtype": dtype,
        "bytes": Path(args.output).stat().st_size,
    }
    if exact is not None:
        terms, weights = exact
        with open_vector(args.output) as written:
            result["norm"], whole = written.norm(), sum_norm(terms, weights)
            distance = sum_norm([written, *terms], [1.0, *(-weight for weight in weights)])
        result["relative_error"] = distance / whole if whole else 0.0
    return result


def spelling(args: argparse.Namespace) -> tuple[str, str]:
    """The dialect and dtype asked for, else the input's; float16 holds every fp8, float32 what else differs."""
    from ..lora.file import LoRAFile

    dialect, _, dtypes = header(LoRAFile.scan(args.input))
    if all(dtype == "F16" or dtype.startswith("F8") for dtype in dtypes):
        dtype = "float16"
    else:
        dtype = "bfloat16" if dtypes == ["BF16"] else "float32"
    return args.dialect or dialect, args.dtype or dtype


def header(file: LoRAFile) -> tuple[str, list[str], list[str]]:
    """(dialect, kinds of adapter, dtypes as safetensors names them) of a file that was scanned."""
    from ..files import CODES
    from ..lora.file import NUMBERS
    from ..lora.kinds import kinds_of, split_key

    names = [(split_key(key) or (key,))[0] for module in file.modules for key in module.keys.values()]
    tensors = [tensor for m in file.modules for role, tensor in m.tensors.items() if role not in NUMBERS]
    if any(name.startswith("diffusion_model.") for name in names):
        dialect = "native"
    else:
        dialect = "peft" if any("." in name for name in names) else "kohya"
    kinds = {kind.name for module in file.modules for kind in kinds_of(module)}
    return dialect, sorted(kinds), sorted({CODES[tensor.dtype] for tensor in tensors})
