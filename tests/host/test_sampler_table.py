"""LCM Sampler against core's `lcm` and `euler` on every architecture that the host has."""

import tempfile

import pytest

from tests.host.report import report_of
from tests.host.sampler_models import CELLS, ROWS
from tools.architecture_table import FILE, parted, row_of

NEWER = {
    "LTX-2, picture and sound", "Anima", "ACE-Step 1.5", "Kandinsky 5", "ERNIE-Image", "Krea 2", "CogVideoX",
    "MiniMax-H3, picture and sound",
}  # fmt: skip


@pytest.fixture(scope="module")
def report(base):
    """What sampler_table.py reports, from a process of its own with the host in it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return report_of("sampler_table", folder)


def cells_of(report, name):
    if name in NEWER and name not in report["rows"]:
        pytest.skip(f"ComfyUI {report['version']} has no {name}")
    return report["rows"][name]


@pytest.mark.parametrize("name", ROWS)
def test_every_cell_is_cores_or_stops_for_its_reason(report, name):
    row, cells = ROWS[name], cells_of(report, name)
    assert cells.keys() == set(CELLS) - ({"seeds"} if row.mixes else set())
    for cell, found in cells.items():
        if stop := row.refuses.get(cell) or row.fails.get(cell):
            assert stop.said in found, cell
        else:
            assert found < row.tolerance, cell


@pytest.mark.parametrize("name", ROWS)
def test_the_table_in_the_documents_says_so(report, name):
    """The same cells have numbers, or stop for the same reason."""
    cells_of(report, name)
    _, table, _ = parted(FILE.read_text(encoding="utf-8"))
    (documented,) = (line for line in table.splitlines() if line.startswith(f"| {name} |"))
    ours, theirs = ([cell.strip() for cell in line.split("|")[2:8]] for line in (row_of(name, [report]), documented))
    assert [not cell[0].isdigit() and cell for cell in ours] == [not cell[0].isdigit() and cell for cell in theirs]
