"""Examples in memory: batches by size, in an order that the seed gives, and the teacher's own latents."""

import math
from collections import Counter

import pytest
import torch

from lcm_core.distill import Examples, sample_latents
from pocket import teacher

SHAPES = [(4, 8, 8)] * 5 + [(4, 8, 6)] * 3 + [(4, 6, 8)]


def examples(**changed):
    """Latents that hold their own number; the second prompt is two words long."""
    latents = [torch.full(shape, float(i)) for i, shape in enumerate(SHAPES)]
    cond = [(torch.full((2 if i == 1 else 1, 3), float(i)), torch.tensor(float(i))) for i in range(len(SHAPES))]
    given = {"latents": latents, "cond": cond, "uncond": (torch.zeros(1, 3), torch.tensor(-1.0)), "batch": 2, "seed": 7}
    return Examples(**given | changed)


def numbers(z):
    return z.flatten(1)[:, 0].int().tolist()


def test_batches_are_of_one_shape_and_an_epoch_has_every_example():
    data, epochs = examples(), []
    for epoch in range(2):
        batches = [data(step) for step in range(epoch * 6, epoch * 6 + 6)]
        for z, cond, uncond in batches:
            assert len(z) == 2 and numbers(z) == cond[1].int().tolist() == cond[0][:, 0, 0].int().tolist()
            assert uncond[0].shape == (2, 1, 3) and uncond[1].tolist() == [-1, -1]
        epochs.append([numbers(z) for z, _, _ in batches])
    for drawn in epochs:
        counts = Counter(sum(drawn, []))
        assert set(counts) == set(range(9)) and sum(counts.values()) == 12
        assert [counts[1], counts[8]] == [2, 2]  # alone in their buckets
    assert epochs[0] != epochs[1]


def test_a_step_gives_its_batch_whatever_came_before():
    steps = [11, 3, 0, 250]
    once = [numbers(examples()(step)[0]) for step in steps]
    data = examples()
    assert once == [numbers(data(step)[0]) for step in steps]
    assert once != [numbers(examples(seed=8)(step)[0]) for step in steps]
    stacked = Examples(torch.arange(3.0)[:, None, None, None], [(torch.zeros(2),)] * 3, (torch.zeros(2),), batch=3)
    assert sorted(numbers(stacked(5)[0])) == [0, 1, 2]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"latents": [], "cond": []}, "no latents"),
        ({"cond": [(torch.zeros(1, 3),)]}, "9 latents, but 1 captions"),
        ({"batch": 0}, "batch 0"),
        ({"latents": [torch.full((4, 8, 8), math.nan)] * 9}, "latents 0, 1, 2 and 6 more have values"),
    ],
)
def test_examples_errors(changed, said):
    with pytest.raises(ValueError, match=said):
        examples(**changed)


def test_the_teacher_draws_its_own_latents():
    """Pocket latents like the data's, each the same in any batch."""
    unet, words = teacher.load_teacher()

    def model(x, t, cond, omega):
        return unet(x, t, *cond)

    prompts = [["cat"], ["car"], ["sun"], ["tulip"]]
    cond, uncond = words(words.index(prompts)), words(words.index([[]] * 4))
    options = {"schedule": teacher.SCHEDULE, "scale": 2.0, "steps": 4, "seed": 3}
    z = sample_latents(model, cond, uncond, (4, 8, 8), **options)
    assert z.shape == (4, 4, 8, 8) and 0.6 < z.std() < 1.4
    last = tuple(c[2:] for c in cond), tuple(c[2:] for c in uncond)
    torch.testing.assert_close(sample_latents(model, *last, (4, 8, 8), **options, first=2), z[2:], rtol=1e-4, atol=1e-4)
    other = sample_latents(model, cond, uncond, (4, 8, 8), **options | {"seed": 4})
    assert (other - z).abs().max() > 0.5
