"""Parses a command line, runs its command and prints what that returns.

A command is a module of `commands`: what adds its arguments, and a function of them that does the work and returns a
dict. That is printed as aligned text or as JSON; errors are one line and an exit code: 0 done, 1 bad input, 2 usage,
130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pkgutil
import sys
from collections.abc import Sequence
from importlib import import_module

from . import commands
from .command import Command, Result
from .errors import explained, told_warnings
from .show import as_text

COMMANDS: dict[str, Command] = {
    name: import_module(f".{name}", commands.__name__).COMMAND for _, name, _ in pkgutil.iter_modules(commands.__path__)
}


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands, with the arguments of the chosen one: some are read from code that needs torch."""
    parser = argparse.ArgumentParser(
        prog="lcm-lora",
        description="Arithmetic on LoRA files of every dialect.",
        epilog="exit codes: 0 done, 1 the input is bad, 2 usage, 130 interrupted. 'lcm-lora COMMAND --help' says more.",
    )
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        own = parsers.add_parser(name, help=command.about, description=command.about, allow_abbrev=False)
        if name == chosen:
            command.add_arguments(own)
        own.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else there")
        own.add_argument("--quiet", action="store_true", help="print nothing but errors and what --json asks for")
        own.add_argument("--progress", action="store_true", help="show bars on stderr even if it is not a terminal")
    return parser


def run(argv: Sequence[str] | None = None) -> int:
    """The exit code of a command line, sys.argv's by default; SystemExit for usage and --help."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        args = build_parser(*argv[:1]).parse_args(argv)
    except ImportError as error:
        code, message = explained(error)
        print(f"lcm-lora {argv[0]}: error: {message}", file=sys.stderr)
        return code
    code = 0
    with told_warnings(args.quiet) as warned:
        try:
            result = COMMANDS[args.command].run(args)
        except (Exception, KeyboardInterrupt) as error:
            code, message = explained(error)
            result = {"error": message}
            print(f"lcm-lora {args.command}: error: {message}", file=sys.stderr)
    if warned:
        result["warnings"] = warned
    return _print(args, code, result)


def _print(args: argparse.Namespace, code: int, result: Result) -> int:
    """Prints a result on stdout and returns the exit code: `code`, or 1 where stdout can't take it.

    A reader that has closed the pipe, such as `head`, has read what it wanted.
    """
    try:
        if args.json:
            print(json.dumps(result))
        elif not code and not args.quiet:
            print(as_text({label: value for label, value in result.items() if label != "warnings"}))
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
    except OSError as error:
        _discard_stdout()
        print(f"lcm-lora {args.command}: error: stdout: {explained(error)[1]}", file=sys.stderr)
        return code or 1
    return code


def _discard_stdout() -> None:
    """What is still buffered goes nowhere, so that Python has nothing to complain of at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
