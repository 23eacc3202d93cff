"""LoRA Vector to Hooks inside the host: strengths over the steps, parts of a picture, every kind of LoRA, refusals."""

from pathlib import Path

import pytest

from tests.host.report import facts_of

SCRIPT = Path(__file__).with_name("hooks.py")


@pytest.fixture(scope="module")
def facts(base):
    return facts_of(base, str(SCRIPT))


@pytest.mark.parametrize("sampler", ["LCM Sampler", "euler", "LCM Sampler Select"])
def test_a_strength_that_changes_is_a_model_for_each_stage(facts, sampler):
    found = facts["stages"][sampler]
    assert found["apart"] < 1e-5 * found["size"]


def test_ksampler_follows_a_schedule(facts):
    assert facts["ksampler"]["apart"] < 1e-5 * facts["ksampler"]["size"]


def test_a_path_beside_the_layers_is_the_same(facts):
    assert facts["stages"]["beside"] < 1e-4 * facts["stages"]["LCM Sampler"]["size"]


@pytest.mark.parametrize("layer", ["linear", "rows", "columns", "halves", "conv", "conv rows", "conv 3d"])
def test_a_path_is_what_the_weight_would_be(facts, layer):
    assert facts["paths"][layer] < 1e-5


def test_a_second_run_is_the_first(facts):
    assert facts["stages"]["again"] == 0


def test_a_quarter_of_four_steps_is_the_second(facts):
    assert facts["shares"]["ours"] == 0


def test_the_hosts_keyframes_work_too_and_are_of_the_models_levels(facts):
    """Level 0.25 of 999 … 0 is 749, below the 759 of the second step."""
    assert facts["shares"]["host's"] == 0
    assert facts["shares"]["step 3"] > 1


def test_parts_of_a_run_count_its_steps_where_they_have_its_sigmas(facts):
    assert max(facts["parts"]["apart"]) < 1e-4


def test_two_vectors_each_have_their_schedule(facts):
    assert facts["several"]["apart"] < 1e-4


@pytest.mark.parametrize("place", ["weights", "activations"])
def test_a_mask_keeps_a_vector_in_its_region(facts, place):
    assert max(facts["region"][place]) < 1e-4 and facts["region"]["between"] > 1


@pytest.mark.parametrize("kind", ["style", "PEFT", "DoRA", "LoHa"])
def test_every_spelling_and_kind_is_applied_as_to_a_model(facts, kind):
    found = facts["kinds"][kind]
    assert found["apart"] < 1e-5 and found["changed"] > 0.1
    assert "DoRA" in found["beside"] if kind == "DoRA" else found["beside"] < 1e-4


def test_the_model_stays_as_it_was(facts):
    assert facts["kinds"]["left"] == 0


@pytest.mark.parametrize("scheduled", [False, True])
def test_text_has_its_whole_strength_and_the_model_that_of_its_steps(facts, scheduled):
    found = facts["text_encoder"][f"scheduled {scheduled}"]
    assert max(found["encoded"]) < 1e-5 and found["made"] < 1e-4
    assert facts["text_encoder"]["changed"] > 1 and facts["text_encoder"]["left"] == 0


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("step 9", "names step 9 and there are 4 steps"),
        ("step 9 of sigmas", "names step 9 and there are 4 steps"),
        ("not finite", "sigmas is no SIGMAS"),
        ("no hooks", "prev_hooks is no HOOKS but 'x'"),
        ("no sigmas", "sigmas has 1 of the 2 levels"),
        ("size", "(7, 7) in the LoRA and (320, 320) in the model"),
        ("architecture", "none of the 1 weights"),
        ("grouped", "x.weight is a Conv2d and takes no path beside it"),
        ("compiled", "the model is compiled"),
        ("unreached", "evaluated without any of the"),
        ("stream", "the frames of a stream are at different steps at once"),
    ],
)
def test_what_does_not_fit_is_named(facts, case, said):
    assert said in facts["refusals"][case]


def test_a_stream_takes_hooks_of_one_strength(facts):
    assert facts["refusals"]["constant stream"] < 1e-4
