"""The useful guidance of a teacher: exact for Gaussian data, and what is said of a range that is far off."""

import math
import re

import pytest
import torch

from lcm_core.distill.useful import advice, crossing, useful_guidance
from lcm_core.schedule import Flow, FlowSchedule, NoiseSchedule


def gaussian(schedule, prediction, within):
    """The exact teacher of two classes N(±1, within²), and its data; the condition is the class's mean, 0 is none."""

    def teacher(x, t, cond, omega):
        alpha, sigma = (v.to(x).reshape(-1, 1, 1, 1) for v in (schedule.alpha(t), schedule.sigma(t)))
        mean = cond[0].reshape(-1, 1, 1, 1)
        spread = torch.where(mean == 0, within**2 + 1, within**2)  # without a class, as if all were one Gaussian
        x0 = mean + alpha * spread / (alpha**2 * spread + sigma**2) * (x - alpha * mean)
        noise = (x - alpha * x0) / sigma
        return noise - x0 if prediction == "flow_prediction" else noise

    generator = torch.Generator().manual_seed(0)
    classes = torch.tensor([1.0, -1.0] * 32)
    z = classes.reshape(-1, 1, 1, 1) + within * torch.randn(64, 1, 16, 16, generator=generator)
    noise = torch.randn(z.shape, generator=generator)
    return teacher, [(part, (c,), (torch.zeros_like(c),), n) for part, c, n in zip(
        z.split(16), classes.split(16), noise.split(16), strict=True)]  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [(NoiseSchedule.scaled_linear(), "epsilon"), (FlowSchedule(Flow(3.0)), "flow_prediction")],
)
def test_guidance_adds_the_contrast_that_is_missing(schedule, prediction, monkeypatch):
    """From pure noise x̂₀ is ±1 and without class 0: (1 + ω)² = 1 + within²."""
    monkeypatch.setattr("lcm_core.distill.useful.SHARES", (1.0,))
    for within in (0.5, math.sqrt(3), 4.0):
        teacher, batches = gaussian(schedule, prediction, within)
        found = useful_guidance(teacher, batches, schedule=schedule, prediction=prediction)
        assert found == pytest.approx(math.sqrt(1 + within**2) - 1, rel=0.08)


def test_at_all_timesteps_the_median_counts():
    schedule = NoiseSchedule.scaled_linear()
    teacher, batches = gaussian(schedule, "epsilon", 4.0)
    found = useful_guidance(teacher, batches, schedule=schedule)
    assert 2 < found < 5


def test_crossings():
    assert crossing(1.0, 0.0, -4.0) == 2
    assert crossing(2.0, 1.0, -4.0) == 1
    assert crossing(1.0, 1.0, 0.5) == 0
    assert crossing(0.0, 0.0, -1.0) == math.inf


@pytest.mark.parametrize(
    ("omega", "useful", "said"),
    [((5, 15), 1.1, "omega 5 to 15 is far from 1.1, .* --omega 0.55 2.2 would fit"), ((1, 2), 8, "--omega 4 16 would"),
     ((5, 15), 0.0, "--omega 0 0"), ((5, 15), 4, None), ((5, 15), 20, None), ((5, 15), math.inf, None)],
)  # fmt: skip
def test_a_range_that_is_far_off_is_told(omega, useful, said):
    text = advice(omega, useful)
    assert text is None if said is None else re.search(said, text)
