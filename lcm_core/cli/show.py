"""A result as text in columns."""

from __future__ import annotations

from .command import Result

WIDTH = 100


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
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
