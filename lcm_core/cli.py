"""The command line: `lcm-lora merge | extract | resize | inspect | convert | distill`.

A command is an entry of COMMANDS: what adds its arguments, and a function of them that does the work and returns a
dict. `main` prints that dict, as aligned text or as JSON, and turns errors into one line and an exit code: 0 done,
1 bad input, 2 usage, 130 interrupted. What needs torch is imported inside the commands, so that --help is quick.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lora import LoRAVector

Result = dict[str, Any]
Report = Callable[[int, int], None]

METHODS = ("sum", "project_out", "slerp", "magnitude_prune", "ties", "dare_linear", "dare_ties")
DIALECTS = ("kohya", "peft", "native")
DTYPES = ("float16", "bfloat16", "float32")
WIDTH = 100


@dataclass(frozen=True)
class Command:
    """about: one line of help. add_arguments: puts the command's own on its parser. run: arguments -> result.

    A result's keys are labels; its values are texts, numbers, lists and dicts of them, or lists of results.
    """

    about: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Result]


def merge(args: argparse.Namespace) -> Result:
    import torch

    from .lora import combine, parse_expression, scale_blocks
    from .lora.record import call_record, file_record, sum_record

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
        return _save(vector, args, record, args.dialect, args.dtype, exact)
    record = call_record("blocks", [record], **dict(args.blocks))
    return _save(scale_blocks(vector, dict(args.blocks)), args, record, args.dialect, args.dtype)


def extract(args: argparse.Namespace) -> Result:
    from .lora import extract
    from .lora.record import call_record, file_record, sum_record
    from .text import listed

    check_output(args, [args.tuned, args.base])
    with progress(args, "extract") as report:
        vector, found = extract(args.tuned, args.base, args.rank, args.energy, diffs=args.diffs, progress=report)
    difference = sum_record([file_record(args.tuned), file_record(args.base)], [1, -1])
    record = call_record("extract", [difference], rank=args.rank, energy=args.energy)
    return {
        **_save(vector, args, record, args.dialect, args.dtype),
        "energy_held": found.energy,
        "parameters_equal": found.equal,
        "parameters_left_out": len(found.left_out),
        "left_out": listed(found.left_out) or None,
    }


def resize(args: argparse.Namespace) -> Result:
    from .lora import LoRAVector, combine
    from .lora.record import call_record, file_record

    check_output(args, [args.input])
    whole = LoRAVector.load(args.input)
    energy = 1.0 if args.rank is None and args.energy is None else args.energy
    with progress(args, "compress") as report:
        vector = combine([whole], [1.0], rank=args.rank, energy=energy, progress=report)
    record = call_record("compress", [file_record(args.input)], rank=args.rank, energy=args.energy)
    return {"rank_before": whole.rank, **_save(vector, args, record, *_spelling(args), ([whole], [1.0]))}


def convert(args: argparse.Namespace) -> Result:
    from .lora import LoRAVector
    from .lora.record import call_record, file_record

    check_output(args, [args.input])
    vector = LoRAVector.load(args.input, args.rank)
    record = call_record("convert", [file_record(args.input)], rank=args.rank)
    written = 1.0 * vector  # without the metadata that a change makes stale
    return _save(written, args, record, *_spelling(args), ([vector], [1.0]) if args.rank is None else None)


def inspect(args: argparse.Namespace) -> Result:
    from .lora import LoRAVector, block_cosines

    vectors = {path: LoRAVector.load(path) for path in args.files}
    result: Result = {"files": [_description(path, vector) for path, vector in vectors.items()]}
    if len(vectors) > 1:
        result["cosines"] = [{"a": a, "b": b, **_cosine(vectors[a], vectors[b])} for a, b in combinations(vectors, 2)]
    if len(vectors) == 2 and result["cosines"][0]["cosine"] is not None:
        result["cosine_by_block"] = block_cosines(*vectors.values())
    return result


def distill(args: argparse.Namespace) -> Result:
    from .distill.command import run

    check_output(args, [])
    return run(args, partial(progress, args))


def _add_merge(parser: argparse.ArgumentParser) -> None:
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
    _add_limits(parser, "the sum keeps the sum of the files' ranks, exactly")
    _add_output(parser, "kohya", "float16, as trainers write")


def _add_extract(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tuned", help="the fine-tuned checkpoint, .safetensors")
    parser.add_argument("base", help="the checkpoint that it was tuned from")
    _add_limits(parser, "one of the two is needed")
    parser.add_argument("--diffs", action="store_true", help="keep what changed in biases and norms too")
    _add_output(parser, "kohya", "float16, as trainers write")


def _add_resize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", help="a LoRA file of any dialect")
    _add_limits(parser, "only what is redundant goes")
    _add_output(parser, "the input's", "the input's")


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", help="a LoRA, LoHa or LoKr file of any dialect")
    parser.add_argument("--rank", type=int, help="rank for LoHa, LoKr and full differences (default: exact)")
    _add_output(parser, "the input's", "the input's")


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="file", help="LoRA files; of two or more also their cosines")


def _add_distill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", required=True, help="the teacher: a folder in diffusers' layout, or a .safetensors checkpoint"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", help="a folder of pictures with captions, name.txt beside each or metadata.jsonl")
    source.add_argument("--prompts", help="a text file, a prompt a line: the teacher draws the pictures itself")
    parser.add_argument("-o", "--out", dest="output", required=True, help="the LoRA to write, .safetensors")
    parser.add_argument("--config", help="a TOML file of settings: those below and DistillConfig's")
    parser.add_argument("--rank", type=int, help="rank of the LoRA (default 64)")
    parser.add_argument("--batch", type=int, help="latents a step, over all processes (default 4)")
    parser.add_argument("--size", type=int, help="side in pixels of a square with the pictures' area (default 512)")
    parser.add_argument("--steps", type=int, help="training steps (default 1000)")
    parser.add_argument("--learning-rate", dest="learning_rate", type=float, help="of AdamW (default 1e-4)")
    parser.add_argument("--seed", type=int, help="fixes everything random (default 0)")
    parser.add_argument("--teacher-steps", type=int, default=25, help="DDIM steps of --prompts' pictures (default 25)")
    parser.add_argument("--device", help="such as cuda or cpu (default: cuda if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the frozen weights (default float32)")
    parser.add_argument("--checkpointing", action="store_true", help="less memory for a third more time")
    parser.add_argument("--state", help="where the training's state is kept (default: beside the output)")
    parser.add_argument("--resume", action="store_true", help="go on from the state")
    parser.add_argument("--force", action="store_true", help="replace the output if it is there")


def _add_limits(parser: argparse.ArgumentParser, without: str) -> None:
    parser.add_argument("--rank", type=int, help="the largest rank of a module")
    parser.add_argument(
        "--energy",
        type=float,
        help=f"share of a module's squared norm to keep, in (0, 1], with the fewest ranks (without --rank and "
        f"--energy: {without})",
    )


def _add_output(parser: argparse.ArgumentParser, dialect: str, dtype: str) -> None:
    parser.add_argument("-o", "--output", required=True, help="the file to write, .safetensors")
    parser.add_argument(
        "--dialect",
        choices=DIALECTS,
        default=dialect if dialect in DIALECTS else None,
        help=f"names in the file: kohya for ComfyUI, A1111 and Forge, peft for diffusers, native for ComfyUI alone "
        f"(default: {dialect})",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float16" if dtype.startswith("float16") else None,
        help=f"precision of the file (default: {dtype})",
    )
    parser.add_argument("--force", action="store_true", help="replace the output, or an input, if it is there")


COMMANDS: dict[str, Command] = {
    "merge": Command("Adds LoRA files with weights, or combines them by another method.", _add_merge, merge),
    "extract": Command("Makes a LoRA of the difference of two checkpoints.", _add_extract, extract),
    "resize": Command("Lowers the rank of a LoRA, and says how far that is from it.", _add_resize, resize),
    "inspect": Command("Says what is in LoRA files, and how alike they are.", _add_inspect, inspect),
    "convert": Command("Writes a LoRA in other names or another precision, LoHa and LoKr too.", _add_convert, convert),
    "distill": Command("Makes an LCM-LoRA of a Stable Diffusion checkpoint.", _add_distill, distill),
}


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
    if output.name == "adapter_model.safetensors" and output.with_name("adapter_config.json").exists():
        raise ValueError(
            f"{output} would be read with the alpha of the adapter_config.json beside it; choose another name or folder"
        )


@contextmanager
def progress(args: argparse.Namespace, what: str) -> Iterator[Report]:
    """Gives report(done, total), which moves a bar on stderr: on a terminal or with --progress, if tqdm is there."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        tqdm = None
    if tqdm is None or not (args.progress or (sys.stderr.isatty() and not args.quiet)):
        yield lambda done, total: None
        return
    with tqdm(desc=what, leave=False, file=sys.stderr) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report


def _load_term(name: str) -> LoRAVector:
    from .lora import LoRAVector

    try:
        return LoRAVector.load(name)
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


def _save(
    vector: LoRAVector,
    args: argparse.Namespace,
    record: Mapping[str, str],
    dialect: str,
    dtype: str,
    exact: tuple[Sequence[LoRAVector], Sequence[float]] | None = None,
) -> Result:
    """Writes the output and says what is in it.

    With `exact`, the terms and weights of a sum, also how far the file is from it, rounding included.
    """
    import torch

    from .lora import LoRAVector, write_lora
    from .lora.combine import sum_norm
    from .lora.record import EXPRESSION

    if not vector:
        raise ValueError("nothing is left to write: every module has weight 0; correct the weights")
    state = vector.state_dict(dialect, getattr(torch, dtype))
    written = LoRAVector.from_state_dict(state)
    error = None
    if exact is not None:
        terms, weights = exact
        whole = sum_norm(terms, weights)
        error = sum_norm([written, *terms], [1.0, *(-weight for weight in weights)]) / whole if whole else 0.0
    write_lora(args.output, state, {**vector.metadata, **record})
    return {
        "output": args.output,
        "expression": record[EXPRESSION],
        "modules": len(written),
        "diffs": len(written.diffs) or None,
        "rank": written.rank,
        "parameters": written.parameters,
        "norm": written.norm(),
        "relative_error": error,
        "dialect": dialect,
        "dtype": dtype,
        "bytes": Path(args.output).stat().st_size,
    }


def _spelling(args: argparse.Namespace) -> tuple[str, str]:
    """The dialect and dtype asked for, else the input's; float16 holds every fp8, float32 what else differs."""
    dialect, _, dtypes = _header(args.input)
    if all(dtype == "F16" or dtype.startswith("F8") for dtype in dtypes):
        dtype = "float16"
    else:
        dtype = "bfloat16" if dtypes == ["BF16"] else "float32"
    return args.dialect or dialect, args.dtype or dtype


def _header(path: str) -> tuple[str, list[str], list[str]]:
    """(dialect, kinds of adapter, dtypes as safetensors names them) of a LoRA file, from its header alone."""
    from .files import open_safetensors
    from .lora.keys import HADAMARD, KRONECKER, split_key

    kind_of = {"down": "LoRA", "diff": "difference", "diff_b": "difference"}
    kind_of |= {**dict.fromkeys(HADAMARD, "LoHa"), **dict.fromkeys(KRONECKER, "LoKr")}
    names, kinds, dtypes = set(), set(), set()
    with open_safetensors(path) as file:
        for key in file.keys():  # noqa: SIM118
            name, role = split_key(key) or (key, "")
            names.add(name)
            if role in kind_of:
                kinds.add(kind_of[role])
            if role != "alpha":
                dtypes.add(str(file.get_slice(key).get_dtype()))
    if any(name.startswith("diffusion_model.") for name in names):
        dialect = "native"
    else:
        dialect = "peft" if any("." in name for name in names) else "kohya"
    return dialect, sorted(kinds), sorted(dtypes)


def _description(path: str, vector: LoRAVector) -> Result:
    from .lora import architecture, block_norms
    from .lora.record import EXPRESSION

    dialect, kinds, dtypes = _header(path)
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


def as_text(result: Result) -> str:
    """A result as lines: labels and values in two columns, dicts as a grid, lists of flat dicts as tables."""
    shown = {label.replace("_", " "): value for label, value in result.items() if value not in (None, [], {})}
    indent = max((len(label) for label, value in shown.items() if not _is_sections(value)), default=0) + 2
    lines = []
    for label, value in shown.items():
        if not _is_sections(value):
            first, *rest = _wrapped(value, WIDTH - indent)
            lines += [label.ljust(indent) + first, *(" " * indent + line for line in rest)]
        elif any(isinstance(cell, (dict, list)) for section in value for cell in section.values()):
            lines += ["", *(f"{as_text(section)}\n" for section in value)]
        else:
            lines += ["", *_table(value), ""]
    return "\n".join(lines).strip("\n").replace("\n\n\n", "\n\n")


def _is_sections(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _wrapped(value: object, width: int) -> list[str]:
    if isinstance(value, list):
        return [", ".join(map(_cell, value))]
    if not isinstance(value, dict):
        return [_cell(value)]
    cells = [f"{name}: {_cell(number)}" for name, number in value.items()]
    longest = max(map(len, cells))
    columns = max(1, (width + 2) // (longest + 2))
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    return ["  ".join(cell.ljust(longest) for cell in row).rstrip() for row in rows]


def _table(rows: list[Result]) -> list[str]:
    labels = list(dict.fromkeys(label for row in rows for label in row))
    cells = [labels, *([_cell(row.get(label)) for label in labels] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lcm-lora",
        description="Arithmetic on LoRA files of every dialect.",
        epilog="exit codes: 0 done, 1 the input is bad, 2 usage, 130 interrupted. 'lcm-lora COMMAND --help' says more.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.about, description=command.about, allow_abbrev=False)
        command.add_arguments(own)
        own.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else there")
        own.add_argument("--quiet", action="store_true", help="print nothing but errors and what --json asks for")
        own.add_argument("--progress", action="store_true", help="show bars on stderr even if it is not a terminal")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, sys.argv's by default, and returns its exit code; SystemExit for usage and --help."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args = build_parser().parse_args(argv)
    code, message = 0, ""
    result: Result = {}
    try:
        result = COMMANDS[args.command].run(args)
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
    except ModuleNotFoundError as error:
        code, message = 1, f"{error.name} is not installed; run pip install 'lcm-lora[cli]'"
    except OSError as error:
        code, message = 1, f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except (ValueError, FloatingPointError, ImportError) as error:
        code, message = 1, str(error)
    if code:
        message = " ".join(message.split())
        print(f"lcm-lora {args.command}: error: {message}", file=sys.stderr)
        result = {"error": message}
    if args.json:
        print(json.dumps(result))
    elif not code and not args.quiet:
        print(as_text(result))
    return code


if __name__ == "__main__":
    sys.exit(main())
