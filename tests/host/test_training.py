"""The training nodes in the host: what they learn from, what they leave behind, and what they say to bad input."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.host.report import facts_of

SCRIPT = Path(__file__).with_name("training.py")


@pytest.fixture(scope="module")
def facts(base):
    return facts_of(base, str(SCRIPT))


def test_the_network_is_called_as_the_host_calls_it(facts):
    network = facts["network"]
    assert (network["names"], network["prediction"]) == (["context"], "epsilon")
    assert network["alpha"] < 1e-6 and network["apart"] < 1e-4


def test_a_training_gives_a_vector_and_leaves_the_model_alone(facts):
    done = facts["distillation"]
    assert done["unchanged"] and done["left"] == 0
    assert done["norm"] > 0 and done["patched"] == [done["modules"]] * 2
    assert done["plot"] == [[1, 432, 768, 3], True, True]
    assert "4 steps" in done["report"]
    assert done["recorded"] == ["lcm-lora", 25]
    assert [(step, bool(picture)) for step, picture in done["previews"]] == [
        (1, False),
        (2, True),
        (3, False),
        (4, True),
    ]


def test_an_interrupted_training_goes_on_bit_for_bit(facts):
    done = facts["resumed"]
    assert done["stopped"] and done["steps"] < 4
    assert done["states"] == [1, True]
    assert "resumed after step 2" in done["report"]
    assert done["equal"] and done["again"]


def test_another_network_or_batch_is_another_training(facts):
    """The same graph with one thing changed gives the vector of its own training, not the first one's."""
    done = facts["another"]
    assert done["found"] == {name: [True, False, False] for name in ("style", "batch")}
    assert done["again"] == [True, True]
    assert f"state: another{os.sep}state_" in done["report"]
    others = f"2 other states, {sum(done['sizes'][1:]) / 1e6:,.1f} MB, in another; delete those you don't need"
    assert others in done["report"] and len(set(done["sizes"])) == 1


def test_a_full_disk_costs_no_training(facts):
    done = facts["full_disk"]
    assert done["equal"] and done["plot"] == [1, 432, 768, 3] and done["left"] == []
    assert "the state after step 1 could not be written to" in done["report"]
    assert "File too large" in done["report"] and "make room" in done["report"]
    assert done["stopped"] == "InterruptProcessingException"


def test_checkpointing_and_fine_tuning(facts):
    assert facts["options"]["checkpointing"] < 1e-5
    assert facts["options"]["finetuned"] > 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rate", "all its 1 steps, made with learning_rate 0.001 there, 0.0001 now; raise steps"),
        ("cut", "is damaged ("),
        ("no latents", "latents has samples of shape (0, 4, 8, 8); give at least one latent image"),
        ("counts", "2 positive conditionings for 3 latents; give one for each"),
        ("channels", "a latent is (3, 8, 8); the model takes (4, height, width)"),
        ("already", "makes it sample as an LCM; connect the MODEL from before it"),
        ("wrapped", "training would go past it; connect the MODEL from before that node"),
        ("omega", "omega (8.0, 2.0) must be 0 <= low <= high"),
        ("outside", "is not a file name below"),
        ("nan", "latents has NaN, infinite or whole values"),
    ],
)
def test_bad_input_is_refused(name, said, facts):
    assert said in facts["errors"][name]
    assert facts["errors"]["states"] == []
