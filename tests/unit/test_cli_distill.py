"""`lcm-lora distill` on a tiny Stable Diffusion that diffusers saved."""

import errno
import json
import re

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from tiny_tokenizer import WORDS, tokenizer_of_letters
from transformers import CLIPTextConfig, CLIPTextModel

from lcm_core import cli
from lcm_core.accelerators import read_sampling
from lcm_core.distill.pipeline import load_teacher
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--checkpoint", "nowhere", "--prompts", "p.txt"], "nowhere does not exist"),
        (["--checkpoint", ".", "--prompts", "p.txt"], "no model_index.json"),
        (["--checkpoint", ".", "--prompts", "p.txt", "--config", "bad.toml"], "bad.toml has speed; the settings are"),
        (["--checkpoint", ".", "--prompts", "p.txt", "--config", "typed.toml"], "flip 'no' must be of the type of its"),
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
