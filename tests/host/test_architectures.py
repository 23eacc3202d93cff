"""Our nodes on every architecture that LCM-LoRAs are made for, loaded by the host's stock loader."""

import tempfile

import pytest

from tests.host.report import report_of

FAMILIES = {
    "sd15": ("SD15", "EPS"),
    "sd2": ("SD20", "EPS"),
    "sd2_v": ("SD20", "V_PREDICTION"),
    "sdxl": ("SDXL", "EPS"),
    "ssd1b": ("SSD1B", "EPS"),
    "sd3": ("SD3", "FLOW"),
}


@pytest.fixture(scope="module")
def reports(base):
    """What architectures.py reports of each family, from a process of its own with the host in it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return report_of("architectures", folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_few_steps(reports, family):
    report = reports[family]
    assert (report["config"], report["model_type"]) == FAMILIES[family]
    assert not report["has_clip"]
    flow = family == "sd3"
    assert report["shape"] == [2, 16 if flow else 4, 8, 8]
    assert report["finite"]
    shifted = [3000 * s / (1 + 2 * s) for s in (1, 0.76, 0.5, 0.26)]
    assert report["timesteps"] == pytest.approx(shifted if flow else [999, 759, 499, 259], rel=1e-5)
    assert report["on_schedule"]
    assert report["left_alone"]


@pytest.mark.parametrize("family", FAMILIES)
def test_denoised_is_the_consistency_function(reports, family):
    """On the LCM grid, where it is nearly x̂₀, and at the last two timesteps, where c_skip matters."""
    report = reports[family]
    own = FAMILIES[family][1]
    for prediction, error in report["errors"].items():
        assert error < 1e-4 if prediction == own else error > 0.1
    assert report["last_errors"][own] < 1e-5


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "sd3"])
def test_cores_lcm_patch_takes_every_prediction_for_noise(reports, family):
    errors = reports[family]["core_errors"]
    assert errors["EPS"] < 1e-4
    assert errors["V_PREDICTION"] > 0.1


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "sd3"])
def test_cores_lcm_patch_is_taken_over_whatever_the_model_predicts(reports, family):
    own = FAMILIES[family][1]
    assert reports[family]["taken_over"][own] < 1e-4
    message = reports[family]["other_schedule"]
    assert message == "no error" if own == "EPS" else "takes its V_PREDICTION for noise; take that node out" in message


@pytest.mark.parametrize(
    ("name", "levels"), [("gamma 0.3", [1, 0.76, 0.5, 0.26]), ("denoise 0.7", [0.7, 0.54, 0.36, 0.18])]
)
def test_gamma_and_denoise_of_a_flow_model(reports, name, levels):
    """Between the evaluations it is lcm_core's sampler over (1 − σ, σ), with SD3's shift of 3."""
    found = reports["sd3"]["flow"][name]
    sigmas = [3 * s / (1 + 2 * s) for s in levels]
    assert found["finite"]
    assert found["sigmas"] == pytest.approx(sigmas, rel=1e-5)
    assert found["timesteps"] == pytest.approx([1000 * s for s in sigmas], rel=1e-5)
    assert found["error"] < 1e-4
    assert max(found["apart"]) < 1e-4
