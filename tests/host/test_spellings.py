"""One LoRA in every spelling, on every architecture: what our nodes make of it, and of sums of two, is W + Delta W."""

import tempfile

import pytest

from tests.host.report import report_of
from tests.host.shrunken import ARCHITECTURES

MISREAD = {"Flux.2", "Lumina 2"}  # the host's map gives parts of a fused weight rows that are not theirs
# Whose names of diffusers the host does not have, or not all.
UNREAD = {
    *("HunyuanVideo", "HunyuanVideo 1.5", "HunyuanImage", "Lumina 2", "Z-Image", "LTX-Video", "LTX-2", "ACE-Step"),
    *("ACE-Step 1.5", "Cosmos Predict2", "Anima", "Chroma", "Flux.2", "Wan 2.1 T2V", "Wan 2.1 I2V"),
}


@pytest.fixture(scope="module")
def reports(base):
    """What spellings.py reports of each architecture, from a process of its own with the host in it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return report_of("spellings", folder)


@pytest.fixture(params=ARCHITECTURES)
def architecture(request, reports):
    if request.param not in reports:
        pytest.skip(f"this host has no {request.param}")
    return request.param


def test_every_spelling_is_applied_whole(reports, architecture):
    found = reports[architecture]["spellings"]
    assert {"diffusion_model.", "lora_unet_"} <= found.keys()
    for row in found.values():
        modules, of = row["line"].partition(": ")[2].partition(" modules")[0].split(" of ")
        assert modules == of
        assert row["ours"] < 1e-6
        if row["misread"] is not None:
            assert (row["core"] == pytest.approx(0, abs=1e-6)) != row["misread"]
    assert any(row["misread"] for row in found.values()) == (architecture in MISREAD)


def test_all_spellings_are_one_vector_and_sums_are_applied_whole(reports, architecture):
    found = reports[architecture]
    assert max(row["apart"] for row in found["spellings"].values()) < 1e-6
    assert len(found["sums"]) == len(found["spellings"]) > 5
    assert max(found["sums"].values()) < 1e-6


def test_what_is_saved_is_read_by_us_and_by_core(reports, architecture):
    for dialect, row in reports[architecture]["saved"].items():
        assert row["ours"] < 1e-6
        if dialect != "peft" or architecture not in UNREAD:
            assert row["core"] < 1e-6
