"""What a training is judged by while it runs: the same numbers for the same weights, and better ones for better."""

from dataclasses import replace

import pytest
import torch
from tiny_training import CONFIG, SCHEDULE, batches, tiny

from lcm_core.distill import distill
from lcm_core.distill.data import sample_latents
from lcm_core.distill.validation import Validation

pytestmark = pytest.mark.usefixtures("one_thread")
LONGER = replace(CONFIG, steps=120, learning_rate=3e-3, warm_start=5)


def validation(model, weights, config=LONGER):
    return Validation(model, weights, batches(1000), config, schedule=SCHEDULE)


def values(weights):
    return [p.detach().clone() for p in weights.parameters()]


def test_a_training_that_learns_scores_better_and_the_looks_leave_it(caplog):
    plain = tiny(dropout=0)
    losses = [step.loss for step in distill(*plain, batches, LONGER, schedule=SCHEDULE)]
    model, weights = tiny(dropout=0)
    judge, scores = validation(model, weights), []
    start = judge.score()
    for i, step in enumerate(distill(model, weights, batches, LONGER, schedule=SCHEDULE)):
        assert step.loss == losses[i]
        if step.step % 40 == 0:
            scores.append(judge.score())
            assert judge.score() == scores[-1]
            assert judge.pictures().shape == (4, 2, 4, 4)
    assert scores[-1].loss < 0.7 * start.loss and scores[-1].distance < 0.7 * start.distance
    assert all(map(torch.equal, values(weights), values(plain[1])))


def test_a_score_is_the_same_in_trainings_of_another_seed_and_batch_size():
    score = validation(*tiny(dropout=0)).score()
    assert score == validation(*tiny(dropout=0), replace(LONGER, seed=7, accumulate=9, warm_start=0)).score()
    assert score.loss != validation(*tiny(dropout=0), replace(LONGER, objective="pcm")).score().loss
    assert score.distance == validation(*tiny(dropout=0), replace(LONGER, objective="pcm")).score().distance


def test_the_result_is_judged_which_is_the_average():
    model, weights = tiny(dropout=0)
    start = validation(model, weights).score()
    weights.average = values(weights)
    with torch.no_grad():
        for p in weights.parameters():
            p.add_(0.5)
    assert validation(model, weights).score() == start
    weights.average = None
    assert validation(model, weights).score() != start


def test_the_distance_is_that_of_one_step_to_the_teachers_picture():
    """By hand, at the middle of the range of ω."""
    model, weights = tiny(dropout=0)
    z, cond, uncond = batches(1000)
    judge = validation(model, weights)

    def teacher(x, t, cond, omega):
        with weights.using(None):
            return model(x, t, cond, omega)

    taught = sample_latents(teacher, cond, uncond, tuple(z.shape[1:]), schedule=SCHEDULE, scale=2.5, steps=25)
    torch.testing.assert_close(judge.taught, taught)
    x, t = judge.noise(0), torch.full((4,), 999)
    alpha, sigma = SCHEDULE.process(999)
    with torch.no_grad():
        x0 = (x - sigma * model(x, t, cond, torch.full((4,), 1.5))) / alpha
    scaled = 10.0 * 999
    consistent = 0.25 / (scaled**2 + 0.25) * x + scaled / (scaled**2 + 0.25) ** 0.5 * x0
    assert judge.score().distance == pytest.approx(float((consistent - taught).square().mean().sqrt()), rel=1e-4)


def test_an_objective_without_teacher_has_no_distance():
    score = validation(*tiny(dropout=0), replace(LONGER, objective="lcf")).score()
    assert score.distance is None and score.loss > 0
