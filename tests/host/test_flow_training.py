"""Distillation of flow models in the host: their own shift and guidance, the network's call, and what is learned."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("flow_training.py")
NETWORKS = ("Stable Diffusion 3", "Flux.1", "Lumina 2", "Z-Image", "Qwen-Image", "Wan 2.1 T2V")


@pytest.fixture(scope="module")
def facts(base):
    command = [os.environ["LCM_HOST_PYTHON"], str(SCRIPT), os.environ["LCM_HOST_DIR"], str(base)]
    done = subprocess.run(command, capture_output=True, text=True)
    sys.stderr.write(done.stderr[-4000:])
    assert done.returncode == 0
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_flow_model_is_distilled(name, facts):
    if name not in facts:
        pytest.skip(f"this host has no {name}")
    found = facts[name]
    shift = {"Stable Diffusion 3": 3.0, "Lumina 2": 6.0, "Z-Image": 3.0, "Wan 2.1 T2V": 8.0}.get(name, math.exp(1.15))
    assert found["shift"] == pytest.approx(shift)
    assert found["prediction"] == "flow_prediction"
    assert found["apart"] < 1e-5  # of the velocity that the host's own call of the model gives
    assert found["norm"] > 0 and found["other"] > 0.01 * found["norm"]
    assert found["modules"] == found["patched"] > 20
    assert found["checkpointing"] < 1e-5
    assert found["unchanged"] and found["previews"] == [True] * 6
    assert found["guidance"] == (name == "Flux.1")
    assert "connect it to negative, or set omega_min and omega_max to 0" in found["refused"]
