"""lcm_core.solvers against diffusers' DDIMScheduler and DPMSolverMultistepScheduler."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from lcm_core.consistency import predict_x0
from lcm_core.schedule import NoiseSchedule, trailing_timesteps
from lcm_core.solvers import ddim_sample, ddim_step, dpmpp_2m_sample

SD = NoiseSchedule.scaled_linear()
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "trailing"}
SAMPLERS = [ddim_sample, dpmpp_2m_sample]


def randn(seed, dtype=torch.float64):
    return torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(x, t):
    return 0.8 * x + 0.3 * torch.sin(3 * x + t / 100)


def denoiser(prediction, schedule=SD):
    return lambda x, t: predict_x0(network(x, t), x, t, schedule, prediction)


def run(scheduler, steps, x):
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    return x


def assert_within(actual, expected, relative):
    assert (actual - expected).abs().max() <= relative * expected.abs().max()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 25])
def test_ddim_equals_diffusers(steps, prediction):
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, prediction_type=prediction)
    x = randn(0)
    ours = ddim_sample(denoiser(prediction), x, trailing_timesteps(steps), SD)
    assert_within(ours, run(scheduler, steps, x), 2e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 20, 25])
def test_dpmpp_2m_equals_diffusers(steps, prediction):
    scheduler = DPMSolverMultistepScheduler(
        **BETAS, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", lower_order_final=True,
        final_sigmas_type="zero", prediction_type=prediction,
    )  # fmt: skip
    x = randn(0)
    ours = dpmpp_2m_sample(denoiser(prediction), x, trailing_timesteps(steps), SD)
    assert_within(ours, run(scheduler, steps, x), 2e-5)


def test_ddim_step_has_both_ends_of_diffusers():
    x0, noise, t = randn(0), randn(1), 19
    alpha, sigma = SD.process(t)
    x = alpha * x0 + sigma * noise
    for alpha_to_one, end in ((True, None), (False, -1), (False, torch.tensor([-1, -1])), (False, 0)):
        scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=alpha_to_one)
        scheduler.set_timesteps(50)
        assert_within(ddim_step(x0, noise, end, SD), scheduler.step(noise, t, x).prev_sample, 1e-5)


@pytest.mark.bits
def test_ddim_step_takes_a_timestep_for_each_image():
    x0, noise = randn(0, torch.float32).half(), randn(1, torch.float32).half()
    both = ddim_step(x0, noise, torch.tensor([-1, 739]), SD)
    assert both.dtype == torch.float16
    assert torch.equal(both[:1], ddim_step(x0[:1], noise[:1], 0, SD))
    assert torch.equal(both[1:], ddim_step(x0[1:], noise[1:], 739, SD))
    assert ddim_step(x0[:0], noise[:0], torch.tensor([], dtype=torch.long), SD).shape == (0, 4, 3, 3)


@pytest.mark.bits
@pytest.mark.parametrize("sample", SAMPLERS)
def test_a_perfect_denoiser_is_followed_to_its_answer(sample):
    """If x̂₀ is always the truth, every intermediate x lies on the straight path α·x₀ + σ·ε."""
    x0, noise = randn(0), randn(1)
    alpha, sigma = SD.process(999)
    seen = []
    result = sample(
        lambda x, t: x0,
        alpha * x0 + sigma * noise,
        [999, 500.5, 100],
        SD,
        callback=lambda i, t, x, denoised: seen.append((i, t, x)),
    )
    assert torch.equal(result, x0)
    assert [(i, t) for i, t, _ in seen] == [(0, 999), (1, 500.5), (2, 100)]
    for _, t, x in seen:
        torch.testing.assert_close(x, SD.alpha(t) * x0 + SD.sigma(t) * noise)


ZERO_SNR = {**BETAS, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}


def test_ddim_with_zero_terminal_snr_equals_diffusers():
    zero, x = SD.zero_terminal_snr(), randn(0)
    ours = ddim_sample(denoiser("v_prediction", zero), x, trailing_timesteps(8), zero)
    assert_within(ours, run(DDIMScheduler(**ZERO_SNR, clip_sample=False), 8, x), 2e-5)


def test_dpmpp_2m_with_zero_terminal_snr():
    """diffusers ends ᾱ at 2⁻²⁴. At a true 0 the first prediction is infinitely far in λ: the second step ignores it."""
    zero, x, timesteps = SD.zero_terminal_snr(), randn(0), trailing_timesteps(8)
    almost = NoiseSchedule(torch.cat([zero.alphas_cumprod[:-1], torch.tensor([2.0**-24])]))
    ours = dpmpp_2m_sample(denoiser("v_prediction", almost), x, timesteps, almost)
    assert_within(ours, run(DPMSolverMultistepScheduler(**ZERO_SNR), 8, x), 2e-5)

    denoise = denoiser("v_prediction", zero)
    second = ddim_step(denoise(x, 999), x, timesteps[1], zero)
    expected = dpmpp_2m_sample(denoise, second, timesteps[1:], zero)
    torch.testing.assert_close(dpmpp_2m_sample(denoise, x, timesteps, zero), expected)


@pytest.mark.bits
@pytest.mark.parametrize("sample", SAMPLERS)
def test_a_last_timestep_without_noise_is_a_step_to_the_clean_end(sample):
    schedule = NoiseSchedule(torch.tensor([1.0, 0.8, 0.5, 0.2]))
    x = randn(0)
    prediction = []
    sample(lambda x, t: network(x, t), x, [3, 2, 0], schedule, callback=lambda i, t, x, x0: prediction.append((x, x0)))
    assert torch.equal(prediction[2][0], prediction[1][1])


@pytest.mark.parametrize("sample", SAMPLERS)
def test_dtype_empty_list_and_order(sample):
    x = randn(0)
    assert sample(network, x, [], SD) is x
    assert sample(lambda x, t: network(x.float(), t), x.half(), [999, 499, 99], SD).dtype == torch.float16
    for timesteps in ([499, 999], [499, 499]):
        with pytest.raises(ValueError, match="timestep 499 is followed by"):
            sample(network, x, timesteps, SD)
