"""lcm_core.guidance against diffusers and against literal values."""

import math
import pickle
import re

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline
from diffusers.models.embeddings import TimestepEmbedding
from safetensors.torch import save_file

from lcm_core.guidance import guidance_embedding, guided, load_guidance_projection


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
    for w in (math.nan, math.inf, torch.ones(2, 2), torch.full((5000,), math.nan)):
        with pytest.raises(ValueError, match=r"^guidance .{,200} must be a finite number"):
            guidance_embedding(w)


PROJECTION = torch.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.time_embed.cond_proj.weight",
        "time_embed.cond_proj.weight",
        "time_embedding.cond_proj.weight",
        "unet.time_embedding.cond_proj.weight",
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_projection_is_found_by_its_ldm_and_diffusers_names(tmp_path, key, dtype):
    others = {key.replace("cond_proj", "0"): torch.zeros(2), "first_stage_model.cond_proj.weight": torch.ones(3, 4)}
    save_file({**others, key: PROJECTION.to(dtype)}, tmp_path / "a.safetensors")
    for path in (tmp_path / "a.safetensors", str(tmp_path / "a.safetensors")):
        weight = load_guidance_projection(path)
        assert weight.dtype == dtype and torch.equal(weight.float(), PROJECTION)


def test_the_projection_of_a_diffusers_unet_adds_the_guidance_to_its_timestep_embedding(tmp_path):
    torch.manual_seed(0)
    theirs = TimestepEmbedding(8, 32, cond_proj_dim=16)
    state = {f"time_embedding.{name}": weight for name, weight in theirs.state_dict().items()}
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    projection = load_guidance_projection(tmp_path / "diffusion_pytorch_model.safetensors")
    assert projection.shape == (8, 16)
    t_emb, omega = torch.randn(2, 8), guidance_embedding(torch.tensor([3.0, 7.5]), 16)
    torch.testing.assert_close(theirs(t_emb + omega @ projection.T), theirs(t_emb, omega))


def test_a_file_without_the_projection_is_named_with_the_remedy(tmp_path):
    path = tmp_path / "sd15.safetensors"
    save_file({"time_embed.0.weight": PROJECTION, "time_embed.cond_proj.bias": PROJECTION[0].clone()}, path)
    remedy = "no time_embed.cond_proj.weight, .* not a full LCM .* LCM-LoRA needs no guidance embedding"
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} has {remedy}"):
        load_guidance_projection(path)
    with pytest.raises(FileNotFoundError, match="absent.safetensors"):
        load_guidance_projection(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
def test_a_pickled_checkpoint_is_refused_unread(tmp_path, name):
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return marker.touch, ()

    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=f"{name} is a pickle, which can run code.*Get the .safetensors file"):
        load_guidance_projection(tmp_path / name)
    assert not marker.exists()
