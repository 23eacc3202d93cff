"""`lcm-lora distill` on a tiny Stable Diffusion that diffusers saved."""

import argparse
import errno
import json
import re
from collections import defaultdict

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from tensorboardX.proto import event_pb2
from tiny_tokenizer import WORDS, tokenizer_of_letters
from transformers import CLIPTextConfig, CLIPTextModel

from lcm_core import cli
from lcm_core.accelerators import read_sampling
from lcm_core.cli.commands.distill import add_arguments
from lcm_core.distill.command import add_to
from lcm_core.distill.pipeline import load_teacher
from lcm_core.distill.settings import PRESETS, settings_of
from lcm_core.guidance import guidance_embedding
from lcm_core.lora import LoRAVector

SMALL = ["--rank", "4", "--batch", "2", "--size", "64", "--steps", "3", "--device", "cpu"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder in diffusers' layout: latents of 8 pixels' width, words of one letter."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    tokenizer = tokenizer_of_letters(folder, 8)
    text = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet,
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


@pytest.fixture
def pictures(tmp_path):
    """Three pictures with captions, two of one size."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, size in {"a": (64, 64), "b": (64, 64), "c": (64, 128)}.items():
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(name)
    return folder


def run(capsys, *arguments):
    code = cli.main(["distill", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_teacher_is_the_pipeline(checkpoint):
    """Its guided prediction and its latents are those that diffusers' own pipeline works with."""
    teacher = load_teacher(checkpoint)
    pipeline = teacher.pipeline
    cond, uncond = (teacher.conditions(text, (64, 64))[0][None] for text in ("a b", ""))
    expected, empty = pipeline.encode_prompt("a b", "cpu", 1, True)
    torch.testing.assert_close(torch.cat([cond, uncond]), torch.cat([expected, empty]))
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    torch.testing.assert_close(teacher(x, t, (cond,), None), pipeline.unet(x, t, expected).sample)
    assert (teacher.prediction, teacher.cell, teacher.shape(64)) == ("epsilon", 8, (4, 8, 8))
    assert teacher.schedule.alpha(500) == pytest.approx(float(pipeline.scheduler.alphas_cumprod[500].sqrt()))
    assert teacher.encode(torch.rand(1, 3, 64, 64)).shape == (1, 4, 8, 8)
    latents = torch.randn(2, 4, 8, 8)
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    torch.testing.assert_close(teacher.decode(latents), pipeline.image_processor.denormalize(decoded).detach())


def test_pictures_make_a_lora_that_diffusers_loads(checkpoint, pictures, tmp_path, capsys):
    out = tmp_path / "lcm.safetensors"
    code, result = run(capsys, "--checkpoint", checkpoint, "--data", pictures, "--out", out, *SMALL)
    assert code == 0 and (result["examples"], result["steps"], result["rank"]) == (3, 3, 4)
    vector = LoRAVector.load(out)
    assert vector.norm() > 0 and len(vector) == result["modules"]
    assert read_sampling(vector.metadata).name == "lcm-lora"
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, local_files_only=True)
    pipeline.load_lora_weights(str(out))
    assert sum("lora_A" in name for name, _ in pipeline.unet.named_modules() if name.endswith("lora_A")) == len(vector)


def test_encoded_pictures_serve_other_trainings(checkpoint, pictures, tmp_path, capsys):
    """Views, flips and empty prompts; tar files; and another training, of the same data, encodes nothing."""
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "data.tar")) as tar:
        for name in "abc":
            tar.write({"__key__": name, "png": (pictures / f"{name}.png").read_bytes(), "txt": name})
    given = ["--checkpoint", checkpoint, "--cache", tmp_path / "cache", *SMALL, "--empty-share", "0.5"]
    given += ["--views", "2", "--crop", "random", "--flip"]
    results = [
        run(capsys, *given, "--data", data, "--out", tmp_path / f"{i}.safetensors")[1]
        for i, data in enumerate([pictures, pictures, tmp_path / "data.tar"])
    ]
    assert [result["encoded"] for result in results] == [3, 0, 0]
    assert [result["examples"] for result in results] == [3, 3, 3]
    first, *others = (LoRAVector.load(tmp_path / f"{i}.safetensors") for i in range(3))
    assert [(first - other).norm() for other in others] == [0, 0]
    for changed, said in [
        ({"--views": 3, "--crop": "center"}, "views 3 must be 1 … 2"),
        ({"--empty-share": 2}, "empty_share 2 must be in [0, 1)"),
        ({"--encode-batch": 0}, "encode_batch 0 must be at least 1"),
    ]:
        options = [*given, "--data", pictures, "--out", tmp_path / "x.safetensors", *sum(changed.items(), ())]
        code, result = run(capsys, *options)
        assert code == 1 and said in result["error"]


@pytest.mark.bits
def test_a_training_goes_on_from_its_state(checkpoint, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a b\n\nc\n")
    (tmp_path / "settings.toml").write_text("rank = 4\nbatch = 2\nsize = 64\nsteps = 2\nomega = [1.0, 2.0]\n")
    source = ["--checkpoint", checkpoint, "--prompts", tmp_path / "prompts.txt", "--teacher-steps", 2]
    source += ["--config", tmp_path / "settings.toml", "--device", "cpu"]
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    assert run(capsys, *source, "--out", whole, "--steps", 4)[0] == 0
    assert run(capsys, *source, "--out", parts)[1]["steps"] == 2
    code, result = run(capsys, *source, "--out", parts, "--steps", 4, "--force")
    assert code == 1 and "go on from it with --resume" in result["error"]
    result = run(capsys, *source, "--out", parts, "--steps", 4, "--force", "--resume")[1]
    assert (result["steps"], result["resumed_after"], result["drawn"]) == (4, 2, 0)
    assert (LoRAVector.load(whole) - LoRAVector.load(parts)).norm() == 0


def test_a_training_goes_on_with_the_same_alone(checkpoint, pictures, tmp_path, capsys):
    """What differs is told by name. Files count for their bytes, not for the last bits of their latents."""
    tuned = tmp_path / "tuned"
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, local_files_only=True)
    with torch.no_grad():
        pipeline.unet.conv_out.bias[0] += 1e-3
    pipeline.save_pretrained(tuned)
    with torch.no_grad():
        pipeline.unet.conv_out.bias[0] -= 1e-3
        pipeline.vae.encoder.conv_in.bias[0] += 1e-3
    pipeline.save_pretrained(tmp_path / "other_vae")
    given = {"--checkpoint": checkpoint, "--data": pictures, "--out": tmp_path / "lcm.safetensors", "--steps": 2}
    given |= {"--rank": 4, "--batch": 2, "--size": 64, "--device": "cpu"}

    def go(resume=True, **changed):
        options = given | {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
        flags = ["--force", "--resume"] if resume else []
        return run(capsys, *(part for pair in options.items() for part in pair), *flags)

    assert go(resume=False)[0] == 0
    for changed, names in [
        ({"checkpoint": tuned}, ["network"]),
        ({"checkpoint": tmp_path / "other_vae"}, ["encoders"]),
        ({"batch": 3}, ["batch"]),
        ({"size": 128}, ["size"]),
        ({"rank": 2}, ["rank", "alpha"]),
        ({"dtype": "float16"}, ["dtype", "encoders", "network"]),
        ({"seed": 1}, ["seed"]),
        ({"views": 2, "crop": "random"}, ["views", "crop", "flip"]),
        ({"empty_share": 0.5}, ["empty_share"]),
    ]:
        code, result = go(steps=3, **changed)
        assert code == 1 and re.findall(r"[(,] ?(\w+) [^ ]* there", result["error"]) == names, result
    for file, name in (("a.txt", "captions"), ("a.png", "pictures")):
        before = (pictures / file).read_bytes()
        (pictures / file).write_bytes(b"other" if name == "captions" else (pictures / "b.png").read_bytes())
        code, result = go(steps=3)
        assert code == 1 and re.findall(r"[(,] ?(\w+) [^ ]* there", result["error"]) == [name]
        (pictures / file).write_bytes(before)
    assert go(steps=3)[1]["resumed_after"] == 2
    code, result = go(steps=3, learning_rate=1e-5)
    assert code == 1 and "all its 3 steps, made with learning_rate 0.0001 there, 1e-05 now" in result["error"]


def test_a_range_of_guidance_that_is_far_off_is_warned_of(checkpoint, pictures, tmp_path, capsys, monkeypatch):
    asked = []

    def useful(teacher, batches, **given):
        asked.append([tuple(noise.shape) for _, _, _, noise in batches])
        return 1.0

    monkeypatch.setattr("lcm_core.distill.command.useful_guidance", useful)
    given = ["--checkpoint", checkpoint, "--data", pictures, "--cache", tmp_path / "cache", *SMALL]
    said = run(capsys, *given, "--out", tmp_path / "a.safetensors")[1]["warnings"]
    assert sum("omega 5 to 15 is far from 1, " in line and "--omega 0.5 2 would fit it" in line for line in said) == 1
    assert [len(shapes) for shapes in asked] == [8] and sum(shape[0] for shape in asked[0]) == 16
    fitting = run(capsys, *given, "--out", tmp_path / "b.safetensors", "--omega", "0.5", "2")[1]
    assert not any("omega" in line for line in fitting.get("warnings", []))


def test_a_state_that_cannot_be_written_costs_no_training(checkpoint, pictures, tmp_path, capsys, monkeypatch):
    def full(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("lcm_core.distill.state.write_lora", full)
    out = tmp_path / "lcm.safetensors"
    code, result = run(capsys, "--checkpoint", checkpoint, "--data", pictures, "--out", out, *SMALL)
    assert code == 0 and "after step 3 could not be written" in result["state_error"]
    assert len(LoRAVector.load(out)) == result["modules"] and not list(tmp_path.glob("*.state.safetensors"))


def test_a_training_is_watched_and_what_it_has_learned_is_kept(checkpoint, pictures, tmp_path, capsys):
    """Scores and pictures of the same latents, in a table, in files and in TensorBoard's events; LoRAs on the way."""
    out, prompts = tmp_path / "lcm.safetensors", tmp_path / "prompts.txt"
    prompts.write_text("a\nb\n")
    source = ["--checkpoint", checkpoint, "--prompts", prompts, "--teacher-steps", 2, "--out", out, *SMALL]
    watching = ["--validate", pictures, "--validate-every", 2, "--track", "tensorboard", "--keep-every", 1]
    code, result = run(capsys, *source, *watching)
    assert code == 0, result
    folder = tmp_path / "lcm.training"

    def table():
        header, *lines = (folder / "scores.csv").read_text().splitlines()
        assert header == "step,loss,distance"
        return [[float(value) for value in line.split(",")] for line in lines]

    assert [row[0] for row in table()] == [2, 3]
    assert table()[-1][1:] == [result["validation loss"], result["validation distance"]]
    with Image.open(folder / "000003.png") as picture:
        assert picture.size == (3 * 64, 2 * 64) and np.asarray(picture).std() > 1
    (events,) = folder.glob("training/events.*")
    logged = defaultdict(list)
    for event in scalars(events):
        logged[event.tag].append(event)
    assert [len(logged[name]) for name in ("training/loss", "validation/loss", "validation/pictures")] == [3, 2, 2]
    assert logged["validation/loss"][-1].simple_value == pytest.approx(table()[-1][1], rel=1e-6)
    kept = [tmp_path / f"lcm-{step:06}.safetensors" for step in (1, 2)]
    norms = [LoRAVector.load(path).norm() for path in (*kept, out)]
    assert 0 < norms[0] < norms[1] < norms[2] and len(list(tmp_path.glob("lcm-*"))) == 2
    code, result = run(capsys, *source, *watching[:4], "--steps", 4, "--resume", "--force")
    assert code == 0 and [row[0] for row in table()] == [2, 3, 4]
    code, result = run(capsys, *source, "--keep-every", 1, "--out", tmp_path / "lcm.safetensors")
    assert code == 1 and "is there already" in result["error"]


def scalars(path):
    """The values of a file of TensorBoard's events: records of a length, a checksum, an event and a checksum."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        yield from event_pb2.Event.FromString(data[at + 12 : at + 12 + size]).summary.value
        at += 16 + size


def test_a_tracker_that_is_not_installed_is_named(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard"])
    (tmp_path / "prompts.txt").write_text("a\n")
    source = ["--checkpoint", checkpoint, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "lcm.safetensors"]
    code, result = run(capsys, *source, *SMALL, "--track", "wandb")
    assert code == 1 and "tracker wandb needs its package (pip install wandb)" in result["error"]


def test_all_weights_are_a_full_lcm_that_takes_its_guidance(checkpoint, pictures, tmp_path, capsys):
    """Its file is the UNet's in diffusers' names, whose ω changes what it draws; it goes on from its state."""
    out = tmp_path / "full.safetensors"
    source = ["--checkpoint", checkpoint, "--data", pictures, "--out", out, *SMALL, "--full", "--learning-rate", "1e-3"]
    code, result = run(capsys, *source)
    assert code == 0, result
    config = {**UNet2DConditionModel.load_config(checkpoint / "unet"), "time_cond_proj_dim": 256}
    unet, plain = UNet2DConditionModel.from_config(config), load_teacher(checkpoint).network
    tensors = load_file(out)
    assert result["tensors"] == len(tensors) and {t.dtype for t in tensors.values()} == {torch.float16}
    unet.load_state_dict(tensors)
    assert not torch.equal(unet.conv_in.weight, plain.conv_in.weight)
    x, t, text = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 8, 16)
    with torch.no_grad():
        drawn = [unet(x, t, text, timestep_cond=guidance_embedding(omega)).sample for omega in (1.0, 9.0)]
    assert not torch.equal(*drawn)
    code, result = run(capsys, *source, "--steps", 4, "--resume", "--force")
    assert code == 0 and result["resumed_after"] == 3
    code, result = run(capsys, *source[:-2], "--force", "--dtype", "bfloat16", "--state", tmp_path / "b.safetensors")
    assert code == 1 and "use float32" in result["error"]


def test_an_lcm_lora_at_the_start_is_in_the_network_that_is_fine_tuned(checkpoint, pictures, tmp_path, capsys):
    lcm, out = tmp_path / "lcm.safetensors", tmp_path / "tuned.safetensors"
    source = ["--checkpoint", checkpoint, "--data", pictures]
    assert run(capsys, *source, "--out", lcm, *SMALL)[0] == 0
    vector, network, plain = LoRAVector.load(lcm), load_teacher(checkpoint).network, load_teacher(checkpoint).network
    add_to(network, vector)
    name = next(module for module in vector.modules if module.endswith("mid_block.resnets.0.conv1"))
    layer = "mid_block.resnets.0.conv1"
    torch.testing.assert_close(
        network.get_submodule(layer).weight, plain.get_submodule(layer).weight + vector.delta(name)
    )
    code, result = run(capsys, *source, "--out", out, *SMALL, "--objective", "lcf", "--start", lcm)
    assert code == 0 and LoRAVector.load(out).norm() > 0
    code, result = run(capsys, *source, "--out", out, *SMALL, "--objective", "lcf", "--force", "--resume")
    assert code == 1 and "network" in result["error"]
    with pytest.raises(ValueError, match=r"has 1 modules that this network has not \(elsewhere\)"):
        add_to(network, LoRAVector({"elsewhere": vector.modules[name]}))


def test_the_memory_is_told_and_nothing_is_made(checkpoint, pictures, tmp_path, capsys):
    source = ["--checkpoint", checkpoint, "--data", pictures, "--out", tmp_path / "lcm.safetensors", *SMALL]

    def told(*more):
        code, result = run(capsys, *source, "--estimate", *more)
        assert code == 0, result
        return {name: float(value.split()[0].replace(",", "")) for name, value in result.items() if value}

    plain, small = told("--batch", 32), told("--batch", 32, "--checkpointing", "--storage", "float8")
    assert plain["together"] == pytest.approx(sum(plain.values()) - plain["together"], abs=0.03)
    assert small["frozen weights"] < 0.5 * plain["frozen weights"]
    assert small["a step of 32 rows"] < 0.8 * plain["a step of 32 rows"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]
    assert run(capsys, *source, "--storage", "float8", "--ema-decay", 0.9, "--optimizer", "lion")[0] == 0


def arguments(*given):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--checkpoint", "x", "--prompts", "p", "--out", "o.safetensors", *given])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_settings(name, tmp_path):
    own, config, _ = settings_of(arguments("--preset", name))
    assert own["checkpointing"] and config.steps >= 1000
    (tmp_path / "own.toml").write_text("steps = 50\nrank = 8\n")
    own, config, _ = settings_of(arguments("--preset", name, "--config", str(tmp_path / "own.toml"), "--rank", "4"))
    assert (config.steps, own["rank"]) == (50, 4)
    own, config, _ = settings_of(arguments("--preset", name, "--objective", "lcd", "--full"))
    assert (config.options, config.learning_rate, config.target_decay) == ({}, 1e-6, 0.95)
    assert (own["dtype"], own["storage"]) == ("float32", "dtype")


def test_settings_of_the_wrong_kind_are_refused(tmp_path):
    for text, said in (
        ('rank = "4"', "rank is '4'; give a whole number"),
        ('dtype = "int8"', "dtype int8 must be one"),
    ):
        (tmp_path / "own.toml").write_text(text)
        with pytest.raises(ValueError, match=said):
            settings_of(arguments("--config", str(tmp_path / "own.toml")))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--checkpoint", "nowhere", "--prompts", "p.txt"], "nowhere does not exist"),
        (["--checkpoint", ".", "--prompts", "p.txt"], "no model_index.json"),
        (["--checkpoint", ".", "--prompts", "p.txt", "--config", "bad.toml"], "bad.toml has speed; the settings are"),
        (["--checkpoint", ".", "--prompts", "p.txt", "--config", "typed.toml"], "flip is 'no'; give a true or false"),
        (["--checkpoint", ".", "--prompts", "p.txt", "--learning-rate", "3"], "learning_rate 3.0 must be"),
    ],
)
def test_bad_input(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a")
    (tmp_path / "bad.toml").write_text("speed = 3\n")
    (tmp_path / "typed.toml").write_text('flip = "no"\n')
    code, result = run(capsys, *arguments, "--out", "lcm.safetensors", "--device", "cpu")
    assert code == 1 and said in result["error"]
    assert not (tmp_path / "lcm.safetensors").exists()


def test_an_output_made_meanwhile_is_kept_and_what_was_learned_is_in_the_state(
    checkpoint, pictures, tmp_path, capsys, monkeypatch
):
    from lcm_core.distill import command

    out = tmp_path / "lcm.safetensors"

    def made_meanwhile(*args, **kwargs):
        yield from distill(*args, **kwargs)
        out.write_text("another's")

    distill = command.distill
    monkeypatch.setattr(command, "distill", made_meanwhile)
    arguments = ("--checkpoint", checkpoint, "--data", pictures, *SMALL)
    code, result = run(capsys, *arguments, "--out", out)
    assert code == 1 and "made by another program meanwhile" in result["error"]
    assert out.read_text() == "another's"
    state = tmp_path / "lcm.state.safetensors"
    other = tmp_path / "other.safetensors"
    code, result = run(capsys, *arguments, "--out", other, "--state", state, "--resume")
    assert code == 0 and result["resumed_after"] == 3
    assert len(LoRAVector.load(other)) == result["modules"]
