"""Our sampler on every kind of model sampling that the host has: parts of a run, streams, timesteps and shifts."""

import tempfile

import pytest

from tests.host.report import report_of

KINDS = {
    "Stable Video Diffusion": ["ModelSamplingContinuousEDM", "V_PREDICTION"],
    "Stable Cascade, stage C": ["StableCascadeSampling", "EPS"],
    "Stable Audio": ["ModelSamplingContinuousV", "V_PREDICTION"],
    "Cosmos": ["ModelSamplingContinuousEDM", "EDM"],
    "Cosmos Predict2": ["ModelSamplingCosmosRFlow", "COSMOS_RFLOW"],
    "Flux.1": ["ModelSamplingFlux", "CONST"],
}


@pytest.fixture(scope="module")
def reports(base):
    """What kinds.py reports, from a process of its own with the host in it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return report_of("kinds", folder)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("way", ["halves", "stages"])
def test_two_parts_of_a_schedule_are_the_whole(reports, name, way):
    """SplitSigmas' halves through SamplerCustom, and two LCM Samplers, for γ = 1, 0.3 and 0."""
    report = reports["kinds"][name]
    assert report["sampling"] == KINDS[name]
    assert len(report[way]) == 3
    assert max(report[way]) < 1e-5
    assert report["apart"] > 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_only_frames_that_do_not_attend_to_one_another_stream(reports, name):
    message = reports["kinds"][name]["stream"]
    assert message == "no error" if name != "Stable Video Diffusion" else "attend to one another" in message


@pytest.mark.parametrize("name", KINDS)
def test_written_timesteps_are_thousandths_of_any_table(reports, name):
    report = reports["kinds"][name]
    assert report["table"] == (10000 if name in ("Flux.1", "Stable Cascade, stage C") else 1000)
    assert report["written"]


def test_a_shift_changes_nothing_else_of_a_flow(reports):
    """Timesteps of 0 … 1 and of 0 … 1000, and on newer hosts a sound's own shift."""
    assert len(reports["shifts"]) >= 5
    for name, each in reports["shifts"].items():
        before, after = each["others"]
        assert before == after, name
        assert each["shifts"][0] != 4.5 == pytest.approx(each["shifts"][1]), name
