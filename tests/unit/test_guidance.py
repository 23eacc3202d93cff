"""lcm_core.guidance against diffusers and against literal values."""

import math

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline

from lcm_core.guidance import guidance_embedding, guided


def test_guided_extrapolates_from_the_unconditional_prediction():
    cond, uncond = torch.tensor([3.0, 5.0]), torch.tensor([1.0, 1.0])
    assert guided(cond, uncond, 1.0).tolist() == [3.0, 5.0]
    assert guided(cond, uncond, 0.0).tolist() == [1.0, 1.0]
    assert guided(cond, uncond, 7.5).tolist() == [16.0, 31.0]
    assert guided(cond, uncond, torch.tensor([2.0, -1.0])).tolist() == [5.0, -3.0]


def test_guided_keeps_the_dtype_and_the_empty_batch():
    half = torch.ones(2, 4, 3, 3, dtype=torch.float16)
    assert guided(half, half, torch.tensor([5.0, 9.0])).dtype == torch.float16
    assert guided(half[:0], half[:0], 2.0).shape == (0, 4, 3, 3)
    with pytest.raises(ValueError, match="3 coefficients for 2 images"):
        guided(half, half, torch.ones(3))


@pytest.mark.parametrize("dim", [4, 7, 256, 512])
def test_embedding_is_that_of_diffusers(dim):
    w = torch.tensor([0.0, 0.5, 7.5, 14.0], dtype=torch.float64)
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, w, dim, dtype=torch.float64)
    ours = guidance_embedding(w, dim)
    assert ours.dtype == torch.float32 and ours.shape == (4, dim)
    # diffusers takes log(10000) in float32, which moves the angles (up to 14000) by a few parts in 10⁸.
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=5e-4)


def test_embedding_by_hand():
    expected = [math.sin(7500), math.sin(0.75), math.cos(7500), math.cos(0.75)]
    assert guidance_embedding(7.5, 4).tolist() == [pytest.approx(expected, abs=1e-6)]
    assert guidance_embedding(0.0, 5).tolist() == [[0, 0, 1, 1, 0]]
    assert guidance_embedding(torch.tensor([])).shape == (0, 256)


def test_embedding_refuses_what_it_cannot_embed():
    with pytest.raises(ValueError, match="dim is 3; .* at least 4"):
        guidance_embedding(1.0, 3)
    for w in (math.nan, math.inf, torch.ones(2, 2)):
        with pytest.raises(ValueError, match="finite number"):
            guidance_embedding(w)
