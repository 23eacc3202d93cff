"""What a command is, the options that several share, and its progress bars."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..dialects import DIALECTS, DTYPES
from ..text import quoted

if TYPE_CHECKING:
    from ..accelerators import Recipe

Result = dict[str, Any]
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Command:
    """about: one line of help. add_arguments: puts the command's own on its parser. run: arguments -> result.

    A result's keys are labels; its values are texts, numbers, lists and dicts of them, or lists of results. What needs
    torch is imported inside the functions, so that `lcm-lora --help` is quick.
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


def add_resizing(parser: argparse.ArgumentParser, without: str) -> None:
    """`add_limits`, and the further limits of `LoRAVector.compress`."""
    add_limits(parser, without)
    parser.add_argument("--conv-rank", type=int, help="the largest rank of a convolution (default: --rank)")
    parser.add_argument(
        "--sv-ratio", type=float, help="keep the singular values above the largest divided by that, at least 1"
    )
    parser.add_argument(
        "--sv-cumulative",
        type=float,
        help="share of the sum of a module's singular values to keep, in (0, 1]. The strictest limit of all counts",
    )


def add_recipes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipes",
        metavar="FILE",
        help="recipes of your own for accelerators, such as ComfyUI's user/lcm_lora_recipes.json; they count before "
        "those that are known",
    )


def recipes_of(args: argparse.Namespace) -> dict[str, Recipe]:
    """The recipes that a command knows, `--recipes` before the package's; what is wrong with that file are warnings."""
    from ..accelerators import load_recipes

    recipes, faults = load_recipes(args.recipes)
    for fault in faults:
        logging.getLogger(__name__).warning("%s", fault)
    return recipes


def add_measure(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--measure", action="store_true", help=f"also say {what}, which takes longer")


def limits(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_resizing` asked for, as `combine` takes it."""
    return {name: getattr(args, name) for name in ("rank", "energy", "sv_ratio", "sv_cumulative", "conv_rank")}


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="where to compute, such as cuda or cuda:1 (default cpu)")


def checked_device(name: str) -> str:
    """The device. Raises ValueError, naming what there is, for one that is not there or has no float64."""
    import torch

    try:
        float(torch.zeros(1, dtype=torch.float64, device=name))
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(f"device {quoted(name)} can't be used here; use one of {', '.join(there)}") from error
    return name


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
