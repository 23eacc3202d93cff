"""lcm_core.schedule against diffusers and against literal values."""

import json
import math
import re

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from diffusers.schedulers import scheduling_lcm

from lcm_core.schedule import NoiseSchedule, custom_timesteps, expand, lcm_timesteps, trailing_timesteps

SD = NoiseSchedule.scaled_linear()


@pytest.mark.parametrize("zero_snr", [False, True])
def test_alphas_cumprod_are_those_of_diffusers(zero_snr):
    theirs = LCMScheduler(rescale_betas_zero_snr=zero_snr).alphas_cumprod.double()
    ours = SD.zero_terminal_snr() if zero_snr else SD
    assert ours.alphas_cumprod.dtype == torch.float64 and ours.steps == 1000
    torch.testing.assert_close(ours.alphas_cumprod, theirs, rtol=1e-5, atol=1e-7)


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_its_start():
    zero = SD.zero_terminal_snr()
    assert zero.process(999) == (0.0, 1.0)
    assert zero.alpha(0).item() == pytest.approx(SD.alpha(0).item(), rel=1e-12)
    assert SD.alphas_cumprod[-1] > 0


def test_alpha_and_sigma_of_integers_and_tensors():
    schedule = NoiseSchedule(torch.tensor([0.64, 0.36]))
    assert schedule.process(0) == pytest.approx((0.8, 0.6))
    torch.testing.assert_close(schedule.alpha(torch.tensor([[1, 0]])).float(), torch.tensor([[0.6, 0.8]]))
    assert schedule.sigma(torch.tensor([0, 1], dtype=torch.uint8)).tolist() == pytest.approx([0.6, 0.8])
    assert schedule.alpha(torch.tensor([], dtype=torch.long)).shape == (0,)


def test_fractional_timesteps_interpolate_log_sigma_over_alpha():
    log_ratio = [math.log(SD.sigma(t) / SD.alpha(t)) for t in (10, 10.25, 11)]
    assert log_ratio[1] == pytest.approx(0.75 * log_ratio[0] + 0.25 * log_ratio[2], rel=1e-12)
    assert SD.alpha(10.25) ** 2 + SD.sigma(10.25) ** 2 == pytest.approx(1, rel=1e-12)
    assert torch.equal(SD.sigma(torch.tensor([10.0, 999.0])), SD.sigma(torch.tensor([10, 999])))


@pytest.mark.parametrize("values", [[0.9, 0.3, 0.0], [1.0, 0.3, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, 0.0]])
def test_fractional_timesteps_beside_pure_noise_or_a_clean_image_fall_without_a_jump(values):
    schedule = NoiseSchedule(torch.tensor(values, dtype=torch.float64))
    last = len(values) - 1
    t = torch.linspace(0, last, 1000 * last + 1, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=0, atol=1e-12)
    assert (alpha.diff() <= 1e-12).all() and (sigma.diff() >= -1e-12).all()
    assert torch.atan2(sigma, alpha).diff().abs().max() < 3e-3, "an angle of at most π/2 in 1000 parts"


def test_half_a_timestep_before_pure_noise_is_half_of_the_angle():
    zero = SD.zero_terminal_snr()
    alpha, sigma = zero.process(998)
    angle = (math.atan2(sigma, alpha) + math.pi / 2) / 2
    assert zero.process(998.5) == pytest.approx((math.cos(angle), math.sin(angle)), rel=1e-9)
    assert zero.alpha(998.999999).item() == pytest.approx(alpha * 1e-6, rel=1e-3)
    assert zero.alpha(997.5).item() == pytest.approx(
        1 / math.sqrt(1 + math.prod(zero.sigma(t).item() / zero.alpha(t).item() for t in (997, 998))), rel=1e-9
    )


@pytest.mark.parametrize("t", [-1, 1000, 999.5, math.nan, torch.tensor([3, 1000])])
def test_a_timestep_outside_the_schedule_is_refused(t):
    with pytest.raises(ValueError, match=r"outside 0 … 999"):
        SD.sigma(t)


@pytest.mark.parametrize("values", [[], [[0.9, 0.5]], [0.5, 0.9], [1.1, 0.5], [0.9, -0.1], [0.9, math.nan]])
def test_values_that_are_no_schedule_are_refused(values):
    with pytest.raises(ValueError, match="alphas_cumprod"):
        NoiseSchedule(torch.tensor(values))


def test_betas_may_all_be_equal():
    constant = NoiseSchedule.scaled_linear(0.1, 0.1, steps=3).alphas_cumprod
    torch.testing.assert_close(constant, torch.tensor([0.9, 0.81, 0.729], dtype=torch.float64))


def test_schedules_that_cannot_be_made_are_refused():
    with pytest.raises(ValueError, match="betas 0.5, 0.1"):
        NoiseSchedule.scaled_linear(0.5, 0.1)
    with pytest.raises(ValueError, match="betas 0.5, 1.0"):
        NoiseSchedule.scaled_linear(0.5, 1.0)
    with pytest.raises(ValueError, match="steps is 0"):
        NoiseSchedule.scaled_linear(steps=0)
    with pytest.raises(ValueError, match="runs from 0.5 to 0.9 "):
        NoiseSchedule(torch.tensor([0.5, 0.3, 0.9]))
    with pytest.raises(ValueError, match="must decrease"):
        NoiseSchedule(torch.tensor([0.5])).zero_terminal_snr()


def test_lcm_timesteps_are_those_of_diffusers_error_for_error():
    scheduler = LCMScheduler()
    strengths = [i / 100 for i in range(1, 101)] + [1 / 3, 2 / 3, 0.999, 1e-6]
    refused = 0
    for original_steps in (25, 30, 50, 100):
        for strength in strengths:
            for steps in range(1, 53):
                try:
                    scheduler.set_timesteps(steps, original_inference_steps=original_steps, strength=strength)
                except ValueError:
                    refused += 1
                    with pytest.raises(ValueError, match=f"steps {steps} is more than the"):
                        lcm_timesteps(steps, original_steps=original_steps, strength=strength)
                else:
                    ours = lcm_timesteps(steps, original_steps=original_steps, strength=strength)
                    assert ours == scheduler.timesteps.tolist()
    assert 0 < refused < 4 * len(strengths) * 52


def test_lcm_timesteps_known_values():
    assert lcm_timesteps(4) == [999, 759, 499, 259]
    assert lcm_timesteps(4, strength=0.7)[0] == 699
    assert lcm_timesteps(1) == [999]
    assert lcm_timesteps(50) == list(range(999, 0, -20))
    assert lcm_timesteps(3, original_steps=3, train_steps=3) == [2, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": 4.0}, "steps is 4.0"),
        ({"steps": math.nan}, "steps is nan"),
        ({"steps": 4, "original_steps": 0}, "original_steps is 0"),
        ({"steps": 4, "original_steps": 1001}, "original_steps 1001 is more than the model's 1000"),
        ({"steps": 4, "strength": 0.0}, r"strength 0.0 is outside \(0, 1\]"),
        ({"steps": 4, "strength": 1.01}, "strength 1.01"),
        ({"steps": 4, "strength": math.nan}, "strength nan"),
        ({"steps": 51}, "steps 51 .* use at most 50 steps, or raise original_steps"),
        ({"steps": 8, "strength": 0.1}, "steps 8 .* use at most 5 steps, or raise strength above 0.16"),
        ({"steps": 1, "strength": 0.01}, "steps 1 is more than the 0 points .* grid; raise strength above 0.02"),
    ],
)
def test_lcm_timesteps_says_what_is_wrong_and_what_to_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        lcm_timesteps(**arguments)


CUSTOM = [
    [999, 759, 499, 259],
    [999, 959, 919, 19],
    [999, 989, 979, 500, 0],
    [699, 459, 219],
    [999, 749, 499, 249],
    [999, 749, 499],
    [991, 975, 750, 1],
    [999],
    [499],
    [0],
    [998, 997],
    list(range(999, 0, -10)),
    list(range(999, -1, -1)),
]


@pytest.mark.parametrize("original_steps", [25, 50, 60, 100])
def test_custom_timesteps_are_those_of_diffusers_warning_for_warning(original_steps, caplog, monkeypatch):
    scheduler, theirs = LCMScheduler(original_inference_steps=original_steps), []
    monkeypatch.setattr(scheduling_lcm.logger, "warning", theirs.append)
    grid = lcm_timesteps(original_steps, original_steps=original_steps)
    for timesteps in CUSTOM:
        theirs.clear()
        scheduler.set_timesteps(timesteps=timesteps)
        # diffusers does not look for the first timestep on its grid; and with a strength its grid shrinks as the list
        # does, so that it complains of timesteps which are then left out. It knows no other grid than LCM's.
        strangers = [t for t in timesteps[:1] if t not in grid]
        for message in theirs:
            if "not on the original" in message:
                strangers += json.loads(re.search(r"\[.*\]", message)[0])
        strangers = [] if timesteps == trailing_timesteps(len(timesteps)) else strangers
        for strength in (1.0, 0.999, 0.7, 0.5, 1 / 3, 0.2):
            theirs.clear()
            caplog.clear()
            scheduler.set_timesteps(timesteps=timesteps, strength=strength)
            expected = [f"timesteps {strangers} are not on the {original_steps}-point grid"] if strangers else []
            if any("first timestep" in message for message in theirs):
                expected.append(f"the first timestep is {timesteps[0]}, not 999")
            if len(scheduler.timesteps) == 0:
                with pytest.raises(ValueError, match=f"strength {strength} leaves none of the {len(timesteps)} "):
                    custom_timesteps(timesteps, original_steps=original_steps, strength=strength)
                continue
            ours = custom_timesteps(timesteps, original_steps=original_steps, strength=strength)
            assert ours == scheduler.timesteps.tolist()
            assert len(caplog.messages) == len(expected)
            assert all(map(str.startswith, caplog.messages, expected))
            assert {record.levelname for record in caplog.records} <= {"WARNING"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timesteps": [999, 999]}, "timestep 999 follows 999; .* descending"),
        ({"timesteps": [999, 259, 499]}, "timestep 499 follows 259; .* descending"),
        ({"timesteps": [1000]}, "timestep 1000 is not a whole number in 0 … 999"),
        ({"timesteps": [1200, 499]}, "timestep 1200 is not a whole number in 0 … 999"),
        ({"timesteps": [999], "original_inference_steps": 1001}, "original_steps 1001 is more than the model's 1000"),
    ],
)
def test_custom_timesteps_refuses_what_diffusers_refuses(arguments, message):
    with pytest.raises(ValueError):
        LCMScheduler().set_timesteps(**arguments)
    with pytest.raises(ValueError, match=message):
        custom_timesteps(arguments["timesteps"], original_steps=arguments.get("original_inference_steps", 50))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timesteps": []}, "the list of timesteps is empty; give at least one"),
        ({"timesteps": [999, -1]}, "timestep -1 is not a whole number in 0 … 999"),
        ({"timesteps": [999, 499.5]}, "timestep 499.5 is not a whole number"),
        ({"timesteps": [999.0]}, "timestep 999.0 is not a whole number"),
        ({"timesteps": [math.nan]}, "timestep nan is not a whole number"),
        ({"timesteps": [999], "train_steps": 500}, "timestep 999 is not a whole number in 0 … 499"),
        ({"timesteps": [999], "strength": 0.0}, r"strength 0.0 is outside \(0, 1\]"),
        ({"timesteps": [999], "strength": 1.1}, "strength 1.1 is outside"),
        ({"timesteps": [999], "original_steps": 0}, "original_steps is 0"),
    ],
)
def test_custom_timesteps_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        custom_timesteps(**arguments)


def test_the_warning_names_the_grid(caplog):
    custom_timesteps([99, 58], original_steps=5, train_steps=100)
    assert caplog.messages == [
        "timesteps [58] are not on the 5-point grid that the LCM was distilled on, 19, 39, …, 99; "
        "the picture may suffer"
    ]
    caplog.clear()
    custom_timesteps([999, 998])
    assert "[998] are not on the 50-point grid" in caplog.text and "19, 39, …, 999" in caplog.text


@pytest.mark.parametrize("count", range(1, 14))
def test_the_strength_that_custom_timesteps_asks_for_is_enough(count):
    timesteps = lcm_timesteps(50)[:count]
    with pytest.raises(ValueError, match="leaves none of the") as error:
        custom_timesteps(timesteps, strength=0.01)
    remedy = float(re.search("raise it to ([0-9.]+) or more", str(error.value))[1])
    assert custom_timesteps(timesteps, strength=remedy) == timesteps[-1:]


def test_trailing_timesteps_are_those_of_diffusers():
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        theirs = scheduler.timesteps.tolist()
        # For a few counts (61 is the first) diffusers' arange overshoots and appends the timestep -1.
        assert trailing_timesteps(steps) == [t for t in theirs if t >= 0]
    with pytest.raises(ValueError, match="steps 1001 is more than"):
        trailing_timesteps(1001)


def test_expand_gives_one_coefficient_per_image_in_the_arithmetic_dtype():
    x = torch.zeros(2, 3, 4, 4, dtype=torch.float16)
    assert expand(0.5, x).shape == (1, 1, 1, 1) and expand(0.5, x).dtype == torch.float32
    assert expand(torch.tensor([1, 2]), x.double()).flatten().tolist() == [1.0, 2.0]
    assert expand(torch.tensor([]), x[:0]).shape == (0, 1, 1, 1)
    with pytest.raises(ValueError, match="3 coefficients for 2 images"):
        expand(torch.ones(3), x)
