"""Our sampler on every kind of model sampling that the host has, against core's samplers on the same model."""

import tempfile

import pytest

from tests.host.report import report_of

KINDS = {
    "SVD": ["ModelSamplingContinuousEDM", "V_PREDICTION"],
    "Stable Cascade": ["StableCascadeSampling", "EPS"],
    "Stable Audio": ["ModelSamplingContinuousV", "V_PREDICTION"],
    "Cosmos": ["ModelSamplingContinuousEDM", "EDM"],
    "Cosmos-Predict2": ["ModelSamplingCosmosRFlow", "COSMOS_RFLOW"],
    "Flux": ["ModelSamplingFlux", "CONST"],
}


@pytest.fixture(scope="module")
def reports(base):
    """What kinds.py reports of each, from a process of its own with the host in it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return report_of("kinds", folder)


@pytest.mark.parametrize("name", KINDS)
def test_gamma_one_is_cores_lcm_and_gamma_zero_its_euler(reports, name):
    """x̂₀ is f_θ where time is continuous, so with the same noise these are the same samplers."""
    report = reports[name]
    assert report["sampling"] == KINDS[name]
    assert report["finite"]
    assert report["lcm"] < 1e-5
    assert report["euler"] < 1e-5
    assert report["apart"] > 1e-3


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("way", ["halves", "stages"])
def test_two_parts_of_a_schedule_are_the_whole(reports, name, way):
    """SplitSigmas' halves through SamplerCustom, and two LCM Samplers, for γ = 1, 0.3 and 0."""
    assert len(reports[name][way]) == 3
    assert max(reports[name][way]) < 1e-5


@pytest.mark.parametrize("name", KINDS)
def test_only_frames_that_do_not_attend_to_one_another_stream(reports, name):
    message = reports[name]["stream"]
    assert message == "no error" if name != "SVD" else "attend to one another" in message


@pytest.mark.parametrize("name", KINDS)
def test_written_timesteps_are_thousandths_of_any_table(reports, name):
    assert reports[name]["table"] == (10000 if name in ("Flux", "Stable Cascade") else 1000)
    assert reports[name]["written"]
