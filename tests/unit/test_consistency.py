"""lcm_core.consistency against diffusers' LCMScheduler, TCDScheduler and FlowMatchLCMScheduler."""

import math

import pytest
import torch
from diffusers import FlowMatchLCMScheduler, LCMScheduler, TCDScheduler

from lcm_core.consistency import (
    boundary_scalings,
    consistency_function,
    multistep_sample,
    predict_noise,
    predict_x0,
)
from lcm_core.schedule import NoiseSchedule, lcm_timesteps

SD = NoiseSchedule.scaled_linear()
SHAPE = (2, 4, 3, 3)
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def network(x, t):
    return 0.6 * x + 0.2 * torch.sin(2 * x + t / 100)


def randn(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stream(seed, dtype=torch.float64):
    """noise(i) that draws what a diffusers scheduler draws from a generator of this seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda i: torch.randn(SHAPE, generator=generator, dtype=dtype)


def assert_within(actual, expected, relative):
    assert (actual - expected).abs().max() <= relative * expected.abs().max()


@pytest.mark.parametrize("t", [0, 1, 19, 999])
def test_boundary_scalings_are_those_of_diffusers(t):
    theirs = LCMScheduler().get_scalings_for_boundary_condition_discrete(t)
    assert boundary_scalings(t) == pytest.approx(theirs, rel=1e-12)
    for ours, scaling in zip(boundary_scalings(torch.tensor([t, t])), theirs, strict=True):
        assert ours.dtype == torch.float64 and ours.tolist() == pytest.approx([scaling] * 2, rel=1e-12)


def test_boundary_scalings_make_the_identity_at_zero():
    assert boundary_scalings(0) == (1.0, 0.0)
    c_skip, c_out = boundary_scalings(1, sigma_data=3.0, timestep_scaling=4.0)
    assert (c_skip, c_out) == pytest.approx((9 / 25, 4 / 5))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_predictions_invert_the_forward_process(prediction):
    x0, noise, t = randn(0), randn(1), torch.tensor([19, 999])
    alpha, sigma = SD.alpha(t).view(2, 1, 1, 1), SD.sigma(t).view(2, 1, 1, 1)
    x = alpha * x0 + sigma * noise
    output = {"epsilon": noise, "v_prediction": alpha * noise - sigma * x0, "sample": x0}[prediction]
    torch.testing.assert_close(predict_x0(output, x, t, SD, prediction), x0)
    torch.testing.assert_close(predict_noise(output, x, t, SD, prediction), noise)


@pytest.mark.bits
def test_results_have_the_dtype_of_x_and_a_batch_equals_its_images():
    x, t = randn(0).half(), torch.tensor([259, 999])
    output = network(x, 5)
    for function in (predict_x0, predict_noise, consistency_function):
        for prediction in PREDICTIONS:
            batch = function(output.float(), x, t, SD, prediction)
            assert batch.dtype == torch.float16
            alone = function(output[1:], x[1:], 999, SD, prediction)
            assert torch.equal(batch[1:], alone)
    assert predict_x0(output[:0], x[:0], t[:0], SD).shape == (0, *SHAPE[1:])


def test_half_precision_is_computed_in_float32():
    x = randn(0).half()
    output = randn(1).half()
    exact = predict_x0(output.double(), x.double(), 999, SD)
    error = (predict_x0(output, x, 999, SD).double() - exact).abs()
    assert (error <= exact.abs() * 2**-10).all()


def test_predictions_that_cannot_be_made_are_refused():
    x = randn(0)
    zero = SD.zero_terminal_snr()
    with pytest.raises(ValueError, match="alpha is 0 at timestep 999.*must predict v"):
        predict_x0(x, x, 999, zero)
    torch.testing.assert_close(predict_x0(x, x, 999, zero, "v_prediction"), -x)
    with pytest.raises(ValueError, match="sigma is 0 at timestep 0"):
        predict_noise(x, x, 0, NoiseSchedule(torch.tensor([1.0, 0.5])), "sample")
    for function in (predict_x0, predict_noise, consistency_function):
        with pytest.raises(ValueError, match="prediction 'eps' is not known; use 'epsilon'"):
            function(x, x, 5, SD, "eps")


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("steps", "strength"), [(1, 1.0), (4, 1.0), (4, 0.7), (8, 1.0), (50, 1.0)])
def test_sampling_equals_the_lcm_scheduler(prediction, steps, strength):
    scheduler = LCMScheduler(prediction_type=prediction)
    scheduler.set_timesteps(steps, strength=strength)
    generator = torch.Generator().manual_seed(7)
    x = theirs = randn(0)
    theirs_denoised = []
    for t in scheduler.timesteps:
        theirs, denoised = scheduler.step(network(theirs, t), t, theirs, generator=generator, return_dict=False)
        theirs_denoised.append(denoised)

    seen = []
    ours = multistep_sample(
        lambda x, t: consistency_function(network(x, t), x, t, SD, prediction),
        x,
        lcm_timesteps(steps, strength=strength),
        SD.process,
        noise=stream(7),
        callback=lambda i, t, x, denoised: seen.append((i, t, denoised)),
    )
    assert_within(ours, theirs, 1e-5)
    assert [(i, t) for i, t, _ in seen] == list(enumerate(scheduler.timesteps.tolist()))
    for (_, _, denoised), expected in zip(seen, theirs_denoised, strict=True):
        assert_within(denoised, expected, 1e-5)


# A first beta of 0 makes timestep 0 noiseless; otherwise diffusers' TCD at γ = 1, and its last step, keep some noise.
NOISELESS_START = torch.cat([torch.zeros(1), TCDScheduler().betas[1:]]).double()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.7, 1.0])
def test_sampling_equals_the_tcd_scheduler(gamma, prediction):
    scheduler = TCDScheduler(trained_betas=NOISELESS_START.tolist(), prediction_type=prediction)
    schedule = NoiseSchedule(torch.cumprod(1 - NOISELESS_START, dim=0))
    scheduler.set_timesteps(6)
    generator = torch.Generator().manual_seed(3)
    x = theirs = randn(0)
    for t in scheduler.timesteps:
        theirs = scheduler.step(network(theirs, t), t, theirs, eta=gamma, generator=generator).prev_sample
    ours = multistep_sample(
        lambda x, t: predict_x0(network(x, t), x, t, schedule, prediction),
        x,
        lcm_timesteps(6),
        schedule.process,
        noise=stream(3),
        gamma=gamma,
    )
    assert_within(ours, theirs, 1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.7])
def test_every_noisy_sample_equals_the_tcd_scheduler_on_stable_diffusion(gamma):
    scheduler = TCDScheduler()
    scheduler.set_timesteps(8)
    generator = torch.Generator().manual_seed(3)
    x = theirs = randn(0)
    ours = []
    multistep_sample(
        lambda x, t: predict_x0(network(x, t), x, t, SD),
        x,
        lcm_timesteps(8),
        SD.process,
        noise=stream(3),
        gamma=gamma,
        callback=lambda i, t, x, denoised: ours.append(x),
    )
    for t, noisy in zip(scheduler.timesteps, ours, strict=True):
        assert_within(noisy, theirs, 1e-6)
        theirs = scheduler.step(network(theirs, t), t, theirs, eta=gamma, generator=generator).prev_sample


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_sampling_equals_the_flow_match_lcm_scheduler(steps, shift):
    """A flow's f_θ is x − σ·v, without boundary scalings. The scheduler computes in float32, whatever it is given."""

    def velocity(x, sigma):
        return network(x, 1000 * sigma)

    scheduler = FlowMatchLCMScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.tolist()[:-1]
    generator = torch.Generator().manual_seed(7)
    x = randn(0).float()
    theirs = [x]
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=True):
        theirs.append(scheduler.step(velocity(theirs[-1], sigma), t, theirs[-1], generator=generator).prev_sample)
    ours = []
    last = multistep_sample(
        lambda x, sigma: x - sigma * velocity(x, sigma),
        x,
        sigmas,
        lambda sigma: (1 - sigma, sigma),
        noise=stream(7, torch.float32),
        callback=lambda i, sigma, x, denoised: ours.append(x),
    )
    for noisy, expected in zip([*ours, last], theirs, strict=True):
        assert_within(noisy, expected, 1e-6)


def to_sigma(t):
    alpha, sigma = SD.process(t)
    return sigma / alpha


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
def test_one_loop_serves_timesteps_sigmas_and_flow(gamma):
    """Scaling x by 1/α turns the paper's process into the host's sigmas and into a flow; the result is the same."""
    timesteps, x, noises = lcm_timesteps(5), randn(0), [randn(i + 1) for i in range(4)]
    sigmas = {to_sigma(t): t for t in timesteps}
    flows = {sigma / (1 + sigma): sigma for sigma in sigmas}

    def clean(x, t):
        return predict_x0(network(x, t), x, t, SD)

    def halfway(t, gamma):
        return math.floor((1 - gamma) * t)

    common = {"noise": lambda i: noises[i], "gamma": gamma}
    paper = multistep_sample(clean, x, timesteps, SD.process, **common)
    host = multistep_sample(
        lambda x, sigma: clean(x * SD.alpha(sigmas[sigma]), sigmas[sigma]),
        x / SD.alpha(timesteps[0]),
        list(sigmas),
        lambda sigma: (1.0, sigma),
        intermediate=lambda sigma, gamma: to_sigma(halfway(sigmas[sigma], gamma)),
        **common,
    )
    flow = multistep_sample(
        lambda x, level: clean(x * SD.alpha(sigmas[flows[level]]) / (1 - level), sigmas[flows[level]]),
        x / SD.alpha(timesteps[0]) * (1 - next(iter(flows))),
        list(flows),
        lambda level: (1 - level, level),
        intermediate=lambda level, gamma: (s := to_sigma(halfway(sigmas[flows[level]], gamma))) / (1 + s),
        **common,
    )
    torch.testing.assert_close(host, paper, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(flow, paper, rtol=1e-9, atol=1e-9)


def test_by_hand():
    """Sigmas 4 then 2, x̂₀ always 1: x = 5 holds the noise ε = 1."""
    noisy = []

    def run(gamma):
        noisy.clear()
        return multistep_sample(
            lambda x, sigma: torch.ones_like(x),
            torch.tensor([5.0]),
            [4.0, 2.0],
            lambda sigma: (1.0, sigma),
            noise=lambda i: torch.tensor([10.0]),
            gamma=gamma,
            callback=lambda i, sigma, x, denoised: noisy.append(x.item()),
        )

    assert run(1.0).item() == 1 and noisy == [5, 1 + 2 * 10]
    assert run(0.0).item() == 1 and noisy == [5, 1 + 2 * 1]
    assert run(0.5).item() == 1 and noisy == pytest.approx([5, 1 + 1 * 1 + math.sqrt(3) * 10])


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("parts", [(1, 3), (2, 2), (1, 2, 1)])
def test_parts_that_hand_their_noise_on_are_the_whole(parts, gamma):
    timesteps, noises, seen = lcm_timesteps(4), [randn(i + 1) for i in range(3)], []

    def denoise(x, t):
        seen.append(t)
        return predict_x0(network(x, t), x, t, SD)

    whole = multistep_sample(denoise, randn(0), timesteps, SD.process, noise=lambda i: noises[i], gamma=gamma)
    x, done = randn(0), 0
    for count in parts:
        levels, rest = timesteps[done : done + count], timesteps[done + count :]
        x = multistep_sample(
            denoise,
            x,
            levels,
            SD.process,
            noise=lambda i, done=done: noises[done + i],
            gamma=gamma,
            until=rest[0] if rest else None,
        )
        done += count
    assert seen == timesteps * 2
    torch.testing.assert_close(x, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.bits
def test_gamma_zero_draws_no_noise_and_one_step_is_the_consistency_function():
    x = randn(0)
    drawn = []
    multistep_sample(network, x, [999, 499], SD.process, noise=drawn.append, gamma=0.0)
    once = multistep_sample(network, x, [999], SD.process, noise=drawn.append)
    assert drawn == [] and torch.equal(once, network(x, 999))
    assert multistep_sample(network, x, [], SD.process, noise=drawn.append) is x


def test_noise_is_asked_for_by_step_and_x_keeps_its_dtype():
    asked = []
    out = multistep_sample(
        lambda x, t: network(x.float(), t),
        randn(0).half(),
        [999, 499, 249],
        SD.process,
        noise=lambda i: asked.append(i) or torch.ones(SHAPE),
    )
    assert asked == [0, 1] and out.dtype == torch.float16


@pytest.mark.parametrize("gamma", [-0.1, 1.1, math.nan])
def test_a_gamma_outside_zero_to_one_is_refused(gamma):
    with pytest.raises(ValueError, match=r"gamma .* is outside \[0, 1\]"):
        multistep_sample(network, randn(0), [999, 499], SD.process, noise=stream(0), gamma=gamma)


def test_levels_that_cannot_be_stepped_are_refused():
    with pytest.raises(ValueError, match="level 0.0 has sigma 0"):
        multistep_sample(network, randn(0), [1.0, 0.0, 0.0], lambda s: (1.0, s), noise=stream(0), gamma=0.0)
    with pytest.raises(ValueError, match="intermediate gave 500 for level 499"):
        multistep_sample(
            network, randn(0), [999, 499], SD.process, noise=stream(0), gamma=0.5, intermediate=lambda t, gamma: t + 1
        )
