"""What a command is, the options that several share, and its progress bars."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]
Report = Callable[[int, int], None]

DIALECTS = ("kohya", "peft", "native")
DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Command:
    """about: one line of help. add_arguments: puts the command's own on its parser. run: arguments -> result.

    A result's keys are labels; its values are texts, numbers, lists and dicts of them, or lists of results. What needs
    torch is imported inside `run`, so that --help is quick.
    """

    about: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Result]


def add_limits(parser: argparse.ArgumentParser, without: str) -> None:
    parser.add_argument("--rank", type=int, help="the largest rank of a module")
    parser.add_argument(
        "--energy",
        type=float,
        help=f"share of a module's squared norm to keep, in (0, 1], with the fewest ranks (without --rank and "
        f"--energy: {without})",
    )


def add_output(parser: argparse.ArgumentParser, dialect: str, dtype: str) -> None:
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
