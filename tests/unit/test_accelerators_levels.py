"""Where a recipe evaluates the model, on noise schedules and flows, and which settings contradict it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from lcm_core.accelerators import contradictions, levels, load_recipes
from lcm_core.consistency import multistep_sample
from lcm_core.schedule import Flow, NoiseSchedule, lcm_sigmas, lcm_timesteps, trailing_sigmas, trailing_timesteps

RECIPES = load_recipes()[0]
SD = NoiseSchedule.scaled_linear()


def test_known_levels():
    assert levels(RECIPES["lcm-lora"], None, SD) == [999, 759, 499, 259]
    assert levels(RECIPES["sdxl-lightning"], 4, SD) == [999, 749, 499, 249]
    assert levels(RECIPES["dmd2"], 4, SD) == [999, 749, 499, 249]
    assert levels(RECIPES["wan22-lightning-high"], None, Flow(5)) == pytest.approx([1, 0.9375, 5 / 6, 0.625], rel=1e-12)
    assert levels(RECIPES["lcm-lora"], 4, Flow(5)) == pytest.approx([1, 0.9406, 0.8333, 0.6373], abs=5e-5)
    assert levels(RECIPES["ltx2-distilled"], None, Flow(3))[-1] == 0.421875, "no shift moves a list"


@pytest.mark.parametrize("name", RECIPES)
def test_levels_descend_within_the_model_for_every_number_of_steps(name):
    recipe = RECIPES[name]
    grids = {"timesteps": [SD], "sigmas": [Flow(3)]}.get(recipe.grid, [SD, Flow(), Flow(5), Flow(0.5)])
    for model in grids:
        for steps in recipe.steps:
            found = levels(recipe, steps, model)
            first = 1 if isinstance(model, Flow) else 999
            assert len(found) == steps and found[0] == first and found[-1] > 0
            assert all(before > after for before, after in zip(found, found[1:], strict=False))
            assert all(type(level) is (float if isinstance(model, Flow) else int) for level in found)


def test_original_steps_and_another_table_move_the_lcm_grid():
    recipe = replace(RECIPES["lcm-lora"], original_steps=100)
    assert levels(recipe, 4, SD) == lcm_timesteps(4, original_steps=100) == [999, 749, 499, 249]
    short = NoiseSchedule.scaled_linear(steps=100)
    assert levels(RECIPES["lcm-lora"], 4, short) == lcm_timesteps(4, train_steps=100)
    assert levels(RECIPES["hyper-sd"], 4, short) == trailing_timesteps(4, 100)


@pytest.mark.parametrize(
    ("name", "steps", "model", "said"),
    [
        ("dmd2", 8, SD, "steps 8 do not fit DMD2, which has 4 timesteps of its own; use 4 steps"),
        ("ltx2-distilled", 4, Flow(), "which has 8 sigmas of its own; use 8 steps"),
        ("dmd2", 4, Flow(), "DMD2 is given as timesteps, and this model has σ; use a model for SDXL"),
        ("ltx2-distilled", 8, SD, "is given as σ, and this model has timesteps; use a model for LTX-2"),
        ("dmd2", 4, NoiseSchedule.scaled_linear(steps=500), "timestep 999 of DMD2 is outside 0 … 499 of this model"),
        ("lcm-lora", 51, SD, "steps 51 is more than the 50 points"),
        ("lcm-lora", 0, Flow(), "steps is 0"),
        ("hyper-sd", 0, Flow(), "steps is 0"),
    ],
)
def test_levels_that_a_model_does_not_have_are_refused(name, steps, model, said):
    with pytest.raises(ValueError, match=said):
        levels(RECIPES[name], steps, model)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 0.7, math.exp(1.15)])
def test_trailing_sigmas_are_those_of_the_flow_pipelines(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    for steps in (1, 2, 4, 7, 8, 16, 50):
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
        theirs = scheduler.sigmas[:-1].tolist()
        assert trailing_sigmas(steps, Flow(shift)) == pytest.approx(theirs, rel=1e-6)


def test_lcm_sigmas_are_the_shares_of_its_timesteps_under_the_shift():
    assert lcm_sigmas(4, Flow()) == pytest.approx([1, 0.76, 0.5, 0.26], rel=1e-12)
    assert lcm_sigmas(2, Flow(3), strength=0.5) == pytest.approx([Flow(3).sigma(u) for u in (0.5, 0.26)], rel=1e-12)
    with pytest.raises(ValueError, match="steps 26 is more than the 25 points"):
        lcm_sigmas(26, Flow(3), strength=0.5)


def test_a_flow_moves_shares_towards_noise_and_keeps_its_ends():
    flow = Flow(5)
    assert (flow.sigma(0), flow.sigma(1)) == (0, 1) and flow.sigma(0.5) == pytest.approx(5 / 6, rel=1e-15)
    assert flow.process(0.25) == (0.75, 0.25)
    assert Flow().sigma(0.3) == pytest.approx(0.3, rel=1e-15)
    for mu, t in ((1.15, 0.4), (0.5, 0.9)):
        assert Flow(math.exp(mu)).sigma(t) == pytest.approx(math.exp(mu) / (math.exp(mu) + 1 / t - 1), rel=1e-12)
    for shift in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="shift .* must be a number above 0"):
            Flow(shift)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"share .* is outside \[0, 1\]"):
            flow.sigma(share)


def test_a_flow_drives_the_sampler_exactly_where_the_model_is_linear():
    """x₀ = 2 for all noise: every γ = 0 step keeps x on its straight line, and the last estimate is 2."""
    x0, noise = torch.full((1, 2), 2.0, dtype=torch.float64), torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    flow, seen = Flow(5), []
    final = multistep_sample(
        lambda x, sigma: x - sigma * (noise - x0), noise, levels(RECIPES["wan22-lightning-low"], 4, flow), flow.process,
        noise=lambda i: pytest.fail("γ 0 draws no noise"), gamma=0,
        callback=lambda i, sigma, x, _: seen.append((x - ((1 - sigma) * x0 + sigma * noise)).abs().max().item()),
    )  # fmt: skip
    assert max(seen) < 1e-12 and torch.allclose(final, x0, rtol=0, atol=1e-12)


def test_what_fits_contradicts_nothing():
    for recipe in RECIPES.values():
        assert contradictions(recipe) == []
        spans = {
            name: getattr(recipe, name)
            for name in ("gamma", "cfg", "guidance", "shift", "strength")
            if getattr(recipe, name)
        }
        for end in ("default", "low", "high"):
            values = {name: getattr(span, end) for name, span in spans.items()}
            assert contradictions(recipe, grid=recipe.grid, expert=recipe.expert, **values) == []
        assert all(contradictions(recipe, steps=steps) == [] for steps in recipe.steps)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("sdxl-lightning", {"steps": 6}, "6 steps do not fit SDXL-Lightning, which takes 2 or 4 or 8; set steps to 4"),
        ("dmd2", {"steps": 8}, "8 steps do not fit DMD2, which takes 4; set steps to 4"),
        ("sdxl-lightning", {"cfg": 7.0}, "cfg 7 does not fit SDXL-Lightning, which takes 1 to 1.5; set cfg to 1"),
        ("hyper-sd-cfg", {"cfg": 1.0}, "cfg 1 does not fit Hyper-SD CFG, which takes 3.5 to 8; set cfg to 5"),
        ("hyper-flux", {"strength": 1.0},
         "strength 1 does not fit Hyper-FLUX, which takes 0.125; set strength to 0.125"),
        ("hyper-flux", {"guidance": 1.0}, "guidance 1 does not fit Hyper-FLUX, which takes 3.5; set guidance to 3.5"),
        ("sdxl-lightning", {"gamma": 1.0}, "gamma 1 does not fit SDXL-Lightning, which takes 0; set gamma to 0"),
        ("lcm-lora", {"gamma": math.nan}, "gamma nan does not fit LCM-LoRA, which takes 1; set gamma to 1"),
        ("lcm-lora", {"grid": "trailing"},
         "the trailing grid does not fit LCM-LoRA, which is sampled on the LCM grid; take the LCM grid"),
        ("qwen-lightning", {"shift": 1.0},
         "shift 1 does not fit Qwen-Image-Lightning, which takes 3 to 3.1; set shift to 3"),
        ("wan22-lightning-high", {"expert": "low"},
         "Wan 2.2 Lightning, high noise is loaded on the low-noise model and is for the high-noise one; load each "
         "file of the pair on its own model"),
    ],
)  # fmt: skip
def test_a_contradiction_says_the_value_what_is_taken_and_what_to_do(name, settings, said):
    assert contradictions(RECIPES[name], **settings) == [said]


def test_every_contradiction_is_told_at_once_and_those_without_meaning_are_not():
    assert len(contradictions(RECIPES["sdxl-lightning"], steps=20, cfg=7, gamma=1, grid="lcm", strength=0.1)) == 5
    assert contradictions(RECIPES["sdxl-lightning"], shift=5, guidance=3.5, expert="low") == []
