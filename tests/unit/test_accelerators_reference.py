"""Each recipe's levels and update against its family's reference; benchmarks/accelerators.py prints all of them."""

from dataclasses import replace

import pytest

from benchmarks.accelerators import REFERENCES, differences, ours, relative, tcd
from lcm_core.accelerators import Span, load_recipes
from lcm_core.schedule import NoiseSchedule

RECIPES = load_recipes()[0]


def test_every_recipe_has_a_reference():
    assert REFERENCES.keys() == RECIPES.keys()


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        (name, steps)
        for name, recipe in RECIPES.items()
        for steps in sorted({recipe.steps[0], recipe.default_steps, recipe.steps[-1]})
    ],
)
def test_levels_and_samples_are_those_of_the_reference(name, steps):
    of_levels, of_samples = differences(RECIPES[name], steps)
    assert of_levels <= 1e-6 and of_samples <= 1e-5


@pytest.mark.parametrize(
    ("name", "steps", "wrong"),
    [
        ("sdxl-lightning", 4, {"grid": "lcm"}), ("sdxl-lightning", 4, {"gamma": Span(1, 1, 1)}),
        ("lcm-lora", 4, {"original_steps": 25, "grid": "lcm", "gamma": Span(0, 0, 0)}),
        ("dmd2", 4, {"given": (999, 759, 499, 259)}), ("ltx2-distilled", 8, {"grid": "trailing", "given": ()}),
        ("wan21-lightx2v", 4, {"gamma": Span(0.9, 0.9, 0.9)}),
    ],
)  # fmt: skip
def test_a_wrong_recipe_differs_from_the_reference(name, steps, wrong):
    assert max(differences(replace(RECIPES[name], **wrong), steps)) > 1e-3


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("steps", [2, 4, 7])
def test_gamma_is_the_eta_of_tcd(gamma, steps):
    recipe = replace(RECIPES["tcd"], gamma=Span(gamma, gamma, gamma))
    assert differences(recipe, steps)[1] <= 1e-5


def test_the_eta_1_of_tcd_is_gamma_just_below_1():
    """At eta 1 TCDScheduler steps to timestep 0, where σ is not 0; our γ 1 steps to x₀, as LCM does."""
    model = NoiseSchedule.scaled_linear()
    reference = tcd(replace(RECIPES["tcd"], gamma=Span(1, 1, 1)), 4).samples
    for gamma, low, high in ((0.999, 0, 1e-5), (1, 1e-4, model.process(0)[1])):
        samples = ours(replace(RECIPES["tcd"], gamma=Span(gamma, gamma, gamma)), 4, model).samples
        assert low <= max(map(relative, samples, reference)) <= high
