"""The command line: `lcm-lora merge | extract | resize | inspect | convert | distill`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, sys.argv's by default, and returns its exit code; SystemExit for usage and --help."""
    try:
        from .program import run

        return run(argv)
    except KeyboardInterrupt:  # while it is imported, or prints
        print("lcm-lora: interrupted", file=sys.stderr)
        return 130
