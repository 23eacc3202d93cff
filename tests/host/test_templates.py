"""Templates of large models on shrunken networks: what auto makes of their files is what core's nodes make by hand."""

from pathlib import Path

import pytest

from tests.host.report import facts_of

ROOT = Path(__file__).resolve().parents[2]
# Template -> recipes of its LoRAs, evaluations of its samplers, levels, the pictures' shape, the videos' frame rates.
TEMPLATES = {
    "flux_turbo": (["FLUX.1 Turbo Alpha"], [8], None, [1, 64, 64, 3], []),
    "qwen_image_lightning": (["Qwen-Image-Lightning"], [4], [1, 0.9, 0.75, 0.5], [1, 64, 64, 3], []),
    "wan22_lightning_video": (
        ["Wan 2.2 Lightning, high noise", "Wan 2.2 Lightning, low noise"], [2, 2], [1, 0.9375, 5 / 6, 0.625],
        [5, 64, 64, 3], ["16"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def facts(base):
    return facts_of(base, "-m", "tests.host.templates")


def test_every_template_of_a_large_model_ran(facts):
    assert facts.keys() == TEMPLATES.keys()


@pytest.mark.parametrize("name", TEMPLATES)
def test_auto_is_what_core_makes_with_each_setting_by_hand(facts, name):
    found, (recipes, calls, levels, pictures, videos) = facts[name], TEMPLATES[name]
    assert [report.splitlines()[1].partition(": the file name")[0] for report in found["reports"]] == recipes
    assert found["calls"] == calls and found["rows"] == sum(calls), "no guidance"
    assert levels is None or found["levels"] == pytest.approx(levels)
    assert found["apart"] < 1e-5 and found["without"] > 0.01
    assert found["warnings"] == []
    assert (found["pictures"], found["videos"]) == (pictures, videos)
