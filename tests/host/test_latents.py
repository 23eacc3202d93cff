"""Latents that are not one whole picture's: in stages, masked, nested, of another scale; models that sample so."""


import pytest

from tests.host.report import facts_of


@pytest.fixture(scope="module")
def facts(base):
    return facts_of(base, "-m", "tests.host.latents")


MASKED = ["mask 1.0", "mask 0.3", "mask 0.0"]


@pytest.mark.parametrize("name", ["plain", "one step", "seeds", "batch", "picture", "guided", *MASKED])
def test_two_stages_are_one_run(facts, name):
    """Of latents up to some 30: the step noise, the guided steps and the noise outside the mask are the whole's."""
    assert facts["stages"][name] < 1e-3


def test_a_run_that_ends_early_makes_its_steps_and_ends_clean(facts):
    assert facts["stages"]["timesteps"] == [999, 759]
    assert facts["stages"]["clean"] == 0


def test_a_part_without_steps_is_refused(facts):
    assert "start_at_step 4 and end_at_step 10000 leave none of the 4 steps" in facts["stages"]["nothing"]
    assert "start_at_step 2 and end_at_step 1 leave none" in facts["stages"]["backwards"]


def test_nested_latents_are_sampled_as_whole_ones_are(facts):
    found = facts["nested"]
    assert found["shapes"] == [[2, 4, 8, 8], [2, 3, 6]]
    assert max(max(apart) for apart in found["alone"]) < 1e-3
    assert min(found["different"]) > 0.1
    assert max(found["staged"]) < 1e-3
    assert max(found["streamed"]) < 2e-3 and found["widest"] == 2


def test_outside_the_mask_each_part_of_a_nested_latent_is_kept(facts):
    """A picture's half and all of its sound, which a mask of the picture alone leaves as it was made."""
    assert facts["nested"]["kept"] == [[1, 2], [2, 2], [1, 2], [1, 1]]


def test_an_empty_latent_is_fitted_to_the_models_scale_where_the_host_does_it(facts):
    found = facts["scales"]
    assert found["new"] == [1, 4, 4, 4]
    assert found["told"] == {"spacial": 4, "temporal": None}
    assert found["names"] == ["batch_index", "samples"] * 2


@pytest.mark.parametrize("gamma", ["1.0", "0.4", "0.0"])
@pytest.mark.parametrize("denoise", ["1.0", "0.7"])
def test_a_model_that_takes_variance_preserving_samples_is_given_them(facts, gamma, denoise):
    assert max(facts["preserved"][f"{gamma} {denoise}"]) < 1e-3
    assert facts["preserved"]["staged"] < 1e-3
    assert facts["preserved"]["mask"] < 1e-3
    assert facts["preserved"]["mask staged"] < 1e-3


def test_cores_lcm_patch_is_taken_over(facts):
    found = facts["core_patch"]
    assert found["noise"] == found["zero terminal SNR"] == 0 < found["of another"]


def test_a_lcm_patch_on_another_schedule_stays(facts):
    """Its 50 points are every 20th timestep: 749 lies half-way between two of them."""
    found = facts["core_patch"]["other schedule"]
    assert found["timesteps"] == [999, 759, 499, 259]
    assert found["apart"] == 0
    last, above, below = found["points"]
    assert found["between"] == pytest.approx([last, (above * below) ** 0.5], rel=1e-6)
