"""lcm_core.noise: independence of batch, step and seed, and a stream that never changes."""

import pytest
import torch

from lcm_core.noise import BEFORE_STEPS, step_noise

pytestmark = pytest.mark.bits
SHAPE = (5, 4, 8, 8)


def test_an_image_alone_equals_the_image_in_any_batch():
    batch = step_noise(SHAPE, seed=42, step=3)
    for i in range(5):
        assert torch.equal(step_noise((1, 4, 8, 8), 42, 3, indices=[i])[0], batch[i])
    picked = step_noise((3, 4, 8, 8), 42, 3, indices=[4, 0, 4])
    assert torch.equal(picked, batch[[4, 0, 4]])
    assert torch.equal(step_noise((64, 4, 8, 8), 42, 3)[:5], batch)


def test_every_seed_image_and_step_has_its_own_noise():
    seeds = [0, 1, 2, 2**32, 2**32 + 1, 2**63, 2**64 - 1]
    rows = torch.cat([step_noise((3, 16), seed, step) for seed in seeds for step in range(4)])
    assert len(torch.unique(rows, dim=0)) == len(rows) == len(seeds) * 4 * 3
    first = step_noise((3, 16), 2**32, BEFORE_STEPS)
    assert len(torch.unique(torch.cat([rows, first]), dim=0)) == len(rows) + 3
    # swapping image and step, or moving one into the seed, gives something else
    assert not torch.equal(step_noise((1, 16), 0, 1, [2]), step_noise((1, 16), 0, 2, [1]))
    assert not torch.equal(step_noise((1, 16), 1, 0, [0]), step_noise((1, 16), 0, 1, [0]))


def test_each_of_several_seeds_makes_its_row_as_it_does_alone():
    seeds = [7, 2**64 - 1, 0, 42, 7]
    batch = step_noise(SHAPE, seeds, 3)
    for row, seed in zip(batch, seeds, strict=True):
        assert torch.equal(step_noise((1, 4, 8, 8), seed, 3)[0], row)
    assert torch.equal(step_noise((2, 4, 8, 8), tuple(seeds[2:4]), 3), batch[2:4])


def test_seeds_and_indices_together_are_both_heeded():
    seeds, indices = [7, 42, 7, 42, 42], [4, 0, 0, 2, 1]
    batch = step_noise(SHAPE, seeds, 1, indices)
    for row, seed, index in zip(batch, seeds, indices, strict=True):
        assert torch.equal(step_noise((1, 4, 8, 8), seed, 1, [index])[0], row)
    assert torch.equal(step_noise(SHAPE, [42] * 5, 1, range(5)), step_noise(SHAPE, 42, 1))


def test_noise_is_standard_normal_and_uncorrelated():
    noise = step_noise((4, 50_000), 7, 0)
    assert noise.dtype == torch.float32 and noise.device.type == "cpu"
    assert noise.mean(dim=1).abs().max() < 0.02
    assert (noise.std(dim=1) - 1).abs().max() < 0.02
    assert (noise**4).mean() == pytest.approx(3, abs=0.1)
    following = step_noise((4, 50_000), 7, 1)
    correlation = torch.corrcoef(torch.cat([noise, following])) - torch.eye(8)
    assert correlation.abs().max() < 0.02


GOLDEN = [[1.889110804, 1.059745550], [0.725049198, -1.332562327]]


def test_the_stream_is_the_same_on_every_machine_and_the_callers_generators_stay_as_they_were():
    before = torch.get_rng_state()
    noise = step_noise((2, 2), 2**64 - 1, 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(noise, torch.tensor(GOLDEN), rtol=0, atol=1e-6)


def test_empty_and_flat_batches():
    assert step_noise((0, 4, 8, 8), 1, 0).shape == step_noise((0, 4, 8, 8), [], 0).shape == (0, 4, 8, 8)
    assert step_noise((2, 0), 1, 0).shape == (2, 0)
    assert step_noise((3,), 1, 0).shape == (3,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1, 2), -1, 0), "seed -1 is not in 0"),
        (((1, 2), 2**64, 0), f"seed {2**64} is not in 0"),
        (((1, 2), 1.5, 0), "seed 1.5 is not in 0"),
        (((1, 2), 0, -1), "step -1 is not in 0"),
        (((1, 2), 0, 0, [-1]), "image index -1 is not in 0"),
        (((2, 2), 0, 0, [0]), "1 indices for a batch of 2 images"),
        (((2, 2), [3], 0), "1 seeds for a batch of 2 images"),
        (((2, 2), [], 0), "0 seeds for a batch of 2 images"),
        (((0, 2), [3], 0), "1 seeds for a batch of 0 images"),
        (((2, 2), [3, -1], 0), "seed -1 is not in 0"),
        (((2, 2), [3, 4], 0, [0]), "1 indices for a batch of 2 images"),
        (((), 0, 0), "shape is empty"),
    ],
)
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        step_noise(*arguments)
