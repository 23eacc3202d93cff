"""Every name that the host has for a text encoder's weight finds that weight, and all are one canonical name."""

import tempfile

import pytest

from tests.host.report import report_of
from tests.host.text_encoders import ENCODERS


@pytest.fixture(scope="module")
def reports(base):
    """What text_encoders.py reports, from a process of its own with the host in it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return report_of("text_encoders", folder)


@pytest.mark.parametrize("model", ENCODERS)
def test_every_name_of_the_host_finds_its_weight(reports, model):
    if model not in reports:
        pytest.skip(f"this host has no {model}")
    found = reports[model]
    assert found["weights"] == found["known"] > 100
    assert found["lost"] == []
