"""LCM Sampler against core's `lcm` and `euler`: on one architecture of each kind, or on every one that the host has.

LCM_EVERY_ARCHITECTURE=1 runs all rows, some minutes; without it those that differ in how they are sampled.
"""

import os
import tempfile

import pytest

from tests.host.report import report_of
from tests.host.sampler_models import CELLS, ROWS
from tools.architecture_table import FILE, parted, row_of

NEWER = {
    "LTX-2, picture and sound", "Anima", "ACE-Step 1.5", "Kandinsky 5", "ERNIE-Image", "Krea 2", "CogVideoX",
    "MiniMax-H3, picture and sound",
}  # fmt: skip


KINDS = (
    "Stable Diffusion 1.5", "SDXL, v-prediction, zero terminal SNR", "Playground 2.5", "Stable Cascade, stage C",
    "AuraFlow", "Flux.1", "Qwen-Image, Lightning on auto", "Wan 2.2, two experts, Lightning on auto", "LTX-Video",
    "Cosmos", "Lotus, depth in one step",
)  # fmt: skip
TESTED = tuple(ROWS) if os.environ.get("LCM_EVERY_ARCHITECTURE") else KINDS


@pytest.fixture(scope="module")
def report(base):
    """What sampler_table.py reports, from a process of its own with the host in it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return report_of("sampler_table", folder, *TESTED)


def cells_of(report, name):
    if name in NEWER and name not in report["rows"]:
        pytest.skip(f"ComfyUI {report['version']} has no {name}")
    return report["rows"][name]


@pytest.mark.parametrize("name", TESTED)
def test_every_cell_is_cores_or_stops_for_its_reason(report, name):
    row, cells = ROWS[name], cells_of(report, name)
    assert cells.keys() == set(CELLS) - ({"seeds"} if row.mixes else set())
    for cell, found in cells.items():
        if stop := row.refuses.get(cell) or row.fails.get(cell):
            assert stop.said in found, cell
        else:
            assert found < row.tolerance, cell


@pytest.mark.parametrize("name", TESTED)
def test_the_table_in_the_documents_says_so(report, name):
    """The same cells have numbers, or stop for the same reason."""
    cells_of(report, name)
    _, table, _ = parted(FILE.read_text(encoding="utf-8"))
    (documented,) = (line for line in table.splitlines() if line.startswith(f"| {name} |"))
    ours, theirs = ([cell.strip() for cell in line.split("|")[2:8]] for line in (row_of(name, [report]), documented))
    assert [not cell[0].isdigit() and cell for cell in ours] == [not cell[0].isdigit() and cell for cell in theirs]
