"""Full LCM Guidance in the host against diffusers: the UNet with timestep_cond, and sampling with LCMScheduler."""

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, LCMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from lcm_core.noise import step_noise
from tests.host.report import report_of

SEED = 11
SHAPE = (3, 4, 8, 8)
LATENT_SCALE = 0.18215
SINGLE, BARE = "single.safetensors", "unet.safetensors"
EACH = {"file": SINGLE, "omega_per_image": "0, 3.5, 7.5"}
RUNS = {  # inputs of Full LCM Guidance, one after another, and cfg
    "no node": ([], 1.0),
    "0": ([{"file": SINGLE, "omega": 0.0}], 1.0),
    "3.5": ([{"file": SINGLE, "omega": 3.5}], 1.0),
    "7.5": ([{"file": SINGLE, "omega": 7.5}], 1.0),
    "3.5, bare UNet": ([{"file": BARE, "omega": 3.5}], 1.0),
    "each": ([EACH], 1.0),
    "each, cfg 2": ([EACH], 2.0),
    "7.5 after 3.5": ([{"file": SINGLE, "omega": 3.5}, {"file": SINGLE, "omega": 7.5}], 1.0),
    "no node again": ([], 1.0),
}
OMEGAS = {
    "0": [0.0] * 3, "3.5": [3.5] * 3, "7.5": [7.5] * 3, "3.5, bare UNet": [3.5] * 3,
    "each": [0.0, 3.5, 7.5], "each, cfg 2": [0.0, 3.5, 7.5],
}  # fmt: skip


@pytest.fixture(scope="module")
def unet():
    """A full LCM of random weights that the host takes for SD1.5, in which ω counts as much as the timestep."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = UNet2DConditionModel(
            block_out_channels=(320, 320),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=768,
            time_cond_proj_dim=256,
        ).eval()
    embedding = model.time_embedding
    for layer, gain in ((embedding.cond_proj, 2), (embedding.linear_1, 2), (embedding.linear_2, 4)):
        layer.weight.data *= gain
    return model


@pytest.fixture(scope="module")
def found(base, unet):
    """What full_lcm.py reports, and its tensors by run and name, from a process of its own with the host in it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        models = folder / "models" / "diffusion_models"
        models.mkdir(parents=True)
        save_file(unet.state_dict(), models / BARE)
        job = {"runs": RUNS, "shape": SHAPE, "seed": SEED}
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        report = report_of("full_lcm", name)
        tensors = load_file(folder / "results.safetensors")
    runs = {run: {key: tensors[f"{run}/{key}"] for key in ("x", "t", "context", "output", "samples")} for run in RUNS}
    return SimpleNamespace(report=report, runs=runs)


def embedded(omegas):
    """diffusers' embedding, in float64: its float32 angles, up to 7500, are off by up to 5e-4."""
    w = torch.tensor(omegas, dtype=torch.float64)
    return LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, w, 256, dtype=w.dtype).float()


@torch.no_grad()
def predicted(unet, run, omegas=None):
    """diffusers' output for every call of a run (calls, rows, 4, 8, 8), at ω of each image, or without ω."""
    rows = run["x"].shape[1]
    cond = None if omegas is None else embedded(omegas).repeat(rows // len(omegas), 1)
    calls = zip(run["x"], run["t"], run["context"], strict=True)
    return torch.stack([unet(x, t, context, timestep_cond=cond).sample for x, t, context in calls])


def largest(a, b):
    return (a - b).abs().max().item()


def test_the_host_loads_it_as_sd15_and_offers_both_files(found):
    assert found.report["config"] == "SD15"
    assert {SINGLE, BARE} <= set(found.report["files"])


@pytest.mark.parametrize("name", OMEGAS)
def test_the_hosts_unet_is_diffusers_with_timestep_cond(found, unet, name):
    run = found.runs[name]
    assert run["t"][:, 0].tolist() == [999, 759, 499, 259]
    assert largest(predicted(unet, run, OMEGAS[name]), run["output"]) < 1e-4


def test_cond_and_uncond_are_one_batch_with_the_same_images(found):
    x, context = found.runs["each, cfg 2"]["x"], found.runs["each, cfg 2"]["context"]
    assert x.shape[1] == 6 and torch.equal(x[:, :3], x[:, 3:])
    assert largest(context[:, :3], context[:, 3:]) > 1


def test_without_the_node_the_host_drops_omega(found, unet):
    run = found.runs["no node"]
    assert largest(predicted(unet, run), run["output"]) < 1e-4
    for omega in (0.0, 3.5, 7.5):
        apart = (predicted(unet, run, [omega] * 3) - run["output"]).abs().amax((1, 2, 3, 4))
        assert (apart > 0.05).all()


def test_the_model_is_left_as_it_was(found):
    before, after = found.runs["no node"], found.runs["no node again"]
    assert torch.equal(before["output"], after["output"])
    assert (found.report["time_embed"], found.report["patches"]) == ("Sequential", [])


def test_a_second_node_replaces_omega(found):
    assert torch.equal(found.runs["7.5 after 3.5"]["samples"], found.runs["7.5"]["samples"])


def test_a_file_without_the_weight_is_refused(found):
    for part in ("without.safetensors", "cond_proj", "not a full LCM"):
        assert part in found.report["error"]


@pytest.mark.parametrize("name", ["each", "each, cfg 2"])
@torch.no_grad()
def test_sampling_is_diffusers(found, unet, monkeypatch, name):
    run, cfg = found.runs[name], RUNS[name][1]
    noises = (step_noise(SHAPE, SEED, 100 * (t + 1)) for t in (759, 499, 259))
    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *_, **__: next(noises))
    cond = embedded(OMEGAS[name])
    words = torch.randn(2, 1, 77, 768, generator=torch.Generator().manual_seed(SEED)).expand(2, 3, 77, 768)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(SEED))
    scheduler = LCMScheduler()
    scheduler.set_timesteps(4)
    for t in scheduler.timesteps:
        positive, negative = (unet(x, t, context, timestep_cond=cond).sample for context in words)
        x = scheduler.step(negative + cfg * (positive - negative), t, x, return_dict=False)[0]
    assert largest(run["samples"] * LATENT_SCALE, x) < 1e-3
