"""A few hostile prompts against a ComfyUI of their own; tests/host/hostile.py runs as many as you like."""

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.alone
SCRIPT = Path(__file__).with_name("hostile.py")


def test_hostile_prompts_are_refused_with_a_reason(base):
    command = [os.environ["LCM_HOST_PYTHON"], str(SCRIPT), "--count", "60", "--seed", "7"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.stdout, run.stderr[-3000:]
    report = json.loads(run.stdout.splitlines()[-1])
    assert report["findings"] == []
    assert report["prompts"] == 60 and report["ended"]["execution_error"] > 10
