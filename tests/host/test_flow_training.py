"""Distillation of flow models in the host: their own shift and guidance, the network's call, and what is learned."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.host.report import facts_of

SCRIPT = Path(__file__).with_name("flow_training.py")
NETWORKS = ("Stable Diffusion 3", "Flux.1", "Lumina 2", "Z-Image", "Qwen-Image", "Wan 2.1 T2V")


@pytest.fixture(scope="module")
def facts(base):
    return facts_of(base, str(SCRIPT))


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
