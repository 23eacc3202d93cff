"""Writes the table of what LCM Sampler samples into docs/architectures.md from one report of each host.

python -m tests.host.sampler_table COMFYUI FOLDER          with the Python of each host
python tools/architecture_table.py FOLDER/report.json ...  the oldest host first
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from tests.host.sampler_models import CELLS, ROWS, Row  # noqa: E402

FILE = ROOT / "docs" / "architectures.md"
BEGIN, END = "<!-- Written by tools/architecture_table.py. -->\n", "<!-- Up to here. -->\n"
Report = Mapping[str, Any]


def reasons() -> list[str]:
    """Why cells have no number, in the order of the notes."""
    return list(dict.fromkeys(why for row in ROWS.values() for cell in CELLS if (why := reason(row, cell))))


def reason(row: Row, cell: str) -> str:
    if stop := row.refuses.get(cell):
        return f"refused: {stop.reason}"
    if stop := row.fails.get(cell):
        return f"not run, as core's samplers stop too: {stop.reason}"
    return f"not run: {row.mixes}" if cell == "seeds" and row.mixes else ""


def number(value: float) -> str:
    mantissa, exponent = f"{value:.0e}".split("e")
    return "0" if value == 0 else f"{mantissa}e{int(exponent)}"


def row_of(name: str, reports: Sequence[Report]) -> str:
    """A row: each cell's worst difference in all hosts, then the row's worst in each host."""
    row, notes = ROWS[name], reasons()
    ran = [report["rows"].get(name) for report in reports]
    cells = [name]
    for cell in CELLS:
        if why := reason(row, cell):
            cells.append(f"{why.partition(':')[0].partition(',')[0]} ({notes.index(why) + 1})")
        else:
            cells.append(number(max(each[cell] for each in ran if each)))
    for each in ran:
        numbers = [value for value in (each or {}).values() if isinstance(value, float)]
        cells.append("lacks it" if each is None else number(max(numbers)) if numbers else "refused")
    return f"| {' | '.join(cells)} |"


def table(reports: Sequence[Report]) -> str:
    """The rows as Markdown, and the reasons."""
    heads = ["architecture", *CELLS, *(f"in {report['version']}" for report in reports)]
    there = [name for name in ROWS if any(name in report["rows"] for report in reports)]
    lines = [
        f"| {' | '.join(heads)} |",
        f"|---{'|--:' * (len(heads) - 1)}|",
        *(row_of(name, reports) for name in there),
    ]
    return "\n".join([*lines, "", *(f"({i}) {why}.  " for i, why in enumerate(reasons(), 1)), ""])


def parted(text: str) -> tuple[str, str, str]:
    """A document before, in and after the place of the table. ValueError if it has none."""
    found = re.search(f"(.*{re.escape(BEGIN)})(.*?)({re.escape(END)}.*)", text, re.DOTALL)
    if not found:
        raise ValueError(f"{FILE.name} has no place for the table; put {BEGIN!r} and {END!r} in it")
    return found[1], found[2], found[3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path, nargs="+")
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in parser.parse_args().reports]
    before, _, after = parted(FILE.read_text(encoding="utf-8"))
    FILE.write_text(before + table(reports) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
