"""What the sampling nodes promise and only the host's process shows: evaluations, noise, masks, streams, previews."""

from pathlib import Path

import numpy as np
import pytest

from tests.host.report import facts_of

SCRIPT = Path(__file__).with_name("features.py")


@pytest.fixture(scope="module")
def facts(base):
    return facts_of(base, str(SCRIPT))


@pytest.mark.parametrize(
    ("name", "evaluations", "guided"),
    [
        ("cfg 1", 4, []),
        ("guided", 8, [0, 1, 2, 3]),
        ("first step", 5, [0]),
        ("two of five", 7, [0, 1]),
        ("never", 4, []),
        ("but the first", 7, [1, 2, 3]),
        ("in the middle", 6, [1, 2]),
    ],
)
def test_only_guided_steps_evaluate_the_negative_prompt(facts, name, evaluations, guided):
    found = facts["guidance"][name]
    assert found["evaluations"] == evaluations
    assert [i for i, both in enumerate(found["guided"]) if both] == guided
    assert (found["as cfg 1"] == 0) == (not guided)


def test_the_hosts_guidance_nodes_work(facts):
    found = facts["other_guidance"]
    assert found.pop("RescaleCFG first step") == 5
    assert {name: result["evaluations"] for name, result in found.items()} == {
        "RescaleCFG": 8, "CFGGuider": 8, "DualCFGGuider": 12,
    }  # fmt: skip
    assert found["CFGGuider"]["from plain"] == 0
    for name in ("RescaleCFG", "DualCFGGuider"):
        assert found[name]["finite"] and found[name]["from plain"] > 1e-3


@pytest.mark.parametrize(
    ("name", "timesteps"),
    [
        ("4", [999, 759, 499, 259]),
        ("4 at 0.7", [699, 539, 359, 179]),
        ("own", [999, 679, 339, 19]),
        ("own at 0.5", [339, 19]),
    ],
)
def test_the_unet_is_evaluated_at_the_grids_timesteps(facts, name, timesteps):
    assert facts["grid"][name] == timesteps


@pytest.mark.parametrize(
    ("name", "timesteps"),
    [
        ("v", [999, 759, 499, 259]),
        ("v, zero terminal SNR", [999, 759, 499, 259]),
        ("sample", [999, 759, 499, 259]),
        ("200 timesteps", [199, 151, 99, 51]),
    ],
)
def test_every_prediction_and_schedule_gives_the_papers_function(facts, name, timesteps):
    found = facts["predictions"][name]
    assert found["timesteps"] == timesteps
    assert max(found["apart"][1:]) < 1e-5
    # The host keeps the terminal alpha of such a schedule at 2e-4, where the paper has 0.
    assert found["apart"][0] < (1e-3 if "zero" in name else 1e-5)


def test_an_image_with_its_own_seed_is_what_that_seed_makes(facts):
    assert facts["seeds"]["given"] == 0
    assert facts["seeds"]["made"] < 1e-3
    assert facts["seeds"]["apart"] > 0.1


@pytest.mark.parametrize("node", ["LCMLoRA_Sampler", "LCMLoRA_StreamBatch"])
def test_every_bit_of_a_seed_counts_and_short_seeds_keep_the_hosts_first_noise(facts, node):
    found = facts["long_seeds"][node]
    assert found["from the host's"] == 0
    assert found["alone"] == 0
    assert found["different"] == 4 * 3
    assert found["spread"] == pytest.approx([1, 0], abs=0.1)


def test_outside_the_mask_is_the_input_bit_for_bit(facts):
    found = facts["inpainting"]
    for name in ("hard 1.0", "soft 1.0", "hard 0.4", "soft 0.4"):
        assert found[name]["outside"] == 0 < found[name]["inside"]


def test_outside_the_mask_has_the_noise_of_the_inside(facts):
    assert facts["inpainting"]["noise"] < 1e-5


@pytest.mark.parametrize("name", ["plain", "guided"])
def test_a_stream_costs_one_call_a_frame_and_gives_the_same_frames(facts, name):
    found = facts["stream"][name]
    assert (found["calls"], found["rows"]) == (5 + 4 - 1, 4)
    assert found["apart"] < 2e-3


def test_a_stream_refuses_what_varies_by_frame(facts):
    assert "noise mask" in facts["stream"]["mask"]
    assert "2 rows" in facts["stream"]["two rows"]


def test_previews_show_the_consistency_function_at_each_step(facts):
    assert facts["previews"]["steps"] == [[i, 4] for i in range(4)]
    assert facts["previews"]["last"] == 0
    assert facts["previews"]["stream"] == [[i, 3] for i in range(3)]


def test_an_interrupt_stops_within_an_evaluation_and_leaves_nothing(facts):
    found = facts["interrupt"]
    assert found["stopped"] and found["evaluations"] <= 2
    assert "Consistency" not in found["sampling"]
    assert found["changed"] == [0, 0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("steps", ["steps 51", "50 points", "at most 50"]),
        ("strength", ["steps 8", "5 points", "strength 0.1"]),
        ("words", ["timesteps has 'high'", "whole numbers"]),
        ("long seed", ["seed 18446744073709551616 is not in 0 … 2**64 - 1"]),
        ("negative seed", ["seed -1 is not in 0"]),
        ("endless seed", ["seeds has '999", "up to 20 digits"]),
        ("many seeds", ["seeds has 5,000 numbers", "4,096"]),
        ("exponent", ["timesteps has '1e3'", "whole numbers"]),
        ("hexadecimal", ["timesteps has '0x10'", "whole numbers"]),
        ("many timesteps", ["timesteps has 1,001 numbers", "1,000"]),
        ("long text", ["timesteps has 100,001 characters", "100,000"]),
        ("half a character", ["timesteps has '\\ud800'", "half of a character"]),
        ("literal model", ["model is no MODEL but 5", "connect"]),
        ("literal positive", ["positive is no CONDITIONING but 'cat'", "connect"]),
        ("literal latent", ["latent is no LATENT but 'xxx", "connect"]),
        ("no samples", ["latent is no LATENT but {}"]),
        ("list of samples", ["latent is no LATENT but {'samples': [[1.0]]}"]),
        ("frames of a video", ["(1, 4, 2, 8, 8)", "takes 4 dimensions", "VAE"]),
        ("no images", ["(0, 4, 8, 8)", "at least one latent image"]),
        ("nan latent", ["latent has NaN"]),
        ("nan mask", ["latent has a noise mask", "not finite"]),
        ("batch_index", ["batch_index [0] for 2 images"]),
        ("steps of text", ["steps is '4'", "whole number of 0 or more"]),
        ("steps below", ["steps is -1", "whole number of 0 or more"]),
        ("cfg of truth", ["cfg is True", "finite number"]),
        ("no such input", ["LCM Sampler has no input 'sampler'"]),
        ("choice", ["lora_name has no choice '../style.safetensors'", "choose one of"]),
        ("many omega", ["omega_per_image has 5,000 numbers", "4,096"]),
        ("omega of text", ["omega_per_image has 'high'", "finite numbers"]),
        ("ascending", ["999 follows 259", "descending"]),
        ("range", ["1000", "0 … 999"]),
        ("nothing left", ["strength 0.5", "none of the 1"]),
        ("sampling", ["IMG_TO_IMG", "from a noisy sample", "take out"]),
        ("channels", ["16 channels", "takes 4", "VAE"]),
        ("seeds", ["2 seeds", "1 images"]),
        ("gamma", ["gamma is nan"]),
        ("guidance_until", ["guidance_until is nan"]),
        ("omega nan", ["omega is nan", "7.5"]),
        ("omega negative", ["omega is -1.0"]),
        ("omega width", ["width 64", "320", "file"]),
        ("omega batch", ["2 values of omega", "batch of 3"]),
    ],
)
def test_bad_input_is_explained(facts, name, said):
    assert [part for part in said if part not in facts["refused"][name]] == []


def test_errors_are_short(facts):
    assert facts["refused"]["longest"] < 600


def test_bad_input_costs_no_evaluation(facts):
    assert facts["refused"]["evaluations"] == 0


def test_choices_that_will_look_wrong_are_warned_of(facts):
    said = facts["warnings"]
    assert said["cfg 2"] == said["prepared"] == said["trailing"] == []
    assert "timesteps [748] are not on the 50-point grid" in said["off the grid"][0]
    assert "cfg 2.5 burns the picture" in said["cfg 2.5"][0]
    assert "put LCM Model Sampling" in said["plain"][0]


def test_the_same_seed_gives_the_same_picture_in_another_process(facts, host, workflow):
    graph = workflow("lcm_lora_txt2img")
    graph["3"]["inputs"]["text"] = "cat"
    graph["5"]["inputs"] |= {"batch_size": 3, "width": 64, "height": 64}
    graph["6"]["inputs"]["seed"] = 35
    for here, there in zip(host.images(host.queue(graph)), facts["picture"]["rows"], strict=True):
        assert np.abs(here.ravel().astype(int) - there).max() <= 2
