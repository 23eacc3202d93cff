"""A short run of tests/fuzz/kills.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "fuzz" / "kills.py"


@pytest.mark.skipif(os.name == "nt", reason="the script needs SIGKILL and fork")
def test_kills_damage_and_leave_nothing():
    done = subprocess.run([sys.executable, SCRIPT, "--count", "9", "--seed", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["kills"] == 9
    assert counts["left by the kill"] > 0
