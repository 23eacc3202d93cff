"""`lcm-lora distill` on a tiny Stable Diffusion 3 and a tiny Flux that diffusers saved, of pictures and of prompts."""

import json
import types

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from PIL import Image
from safetensors.torch import load_file
from tiny_tokenizer import WORDS, tokenizer_of_letters
from tiny_transformers import NETWORKS
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from lcm_core import cli
from lcm_core.accelerators import read_sampling
from lcm_core.distill.families import FAMILIES
from lcm_core.distill.pipeline import load_teacher
from lcm_core.lora import LoRAVector
from lcm_core.schedule import Flow

SMALL = ["--rank", "4", "--batch", "2", "--size", "64", "--steps", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """name -> a folder in diffusers' layout: latents of 8 pixels' width, words of one letter."""
    folder = tmp_path_factory.mktemp("flows")
    torch.manual_seed(0)
    tokenizer = tokenizer_of_letters(folder, 77)
    text = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=6, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, bos_token_id=0, eos_token_id=1, pad_token_id=1, projection_dim=5,
    )  # fmt: skip

    def autoencoder():
        return AutoencoderKL(
            block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, shift_factor=0.1, scaling_factor=1.5,
        )  # fmt: skip

    def t5(width):
        return T5Config(vocab_size=len(WORDS), d_model=width, d_ff=8, d_kv=4, num_layers=1, num_heads=2)

    sd3 = {**NETWORKS["Stable Diffusion 3"][2], "sample_size": 8, "pos_embed_max_size": 8, "patch_size": 2}
    StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(**sd3, out_channels=4), vae=autoencoder(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=CLIPTextModelWithProjection(text), text_encoder_2=CLIPTextModelWithProjection(text),
        text_encoder_3=T5EncoderModel(t5(12)), tokenizer=tokenizer, tokenizer_2=tokenizer, tokenizer_3=tokenizer,
    ).save_pretrained(folder / "sd3")  # fmt: skip
    flux = {**NETWORKS["Flux"][2], "in_channels": 16, "pooled_projection_dim": 6, "joint_attention_dim": 16}
    FluxPipeline(
        transformer=FluxTransformer2DModel(**flux), vae=autoencoder(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), text_encoder=CLIPTextModel(text),
        text_encoder_2=T5EncoderModel(t5(16)), tokenizer=tokenizer, tokenizer_2=tokenizer,
    ).save_pretrained(folder / "flux")  # fmt: skip
    return folder


def run(capsys, *arguments):
    code = cli.main(["distill", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_pictures_make_a_lora_that_diffusers_loads(checkpoints, tmp_path, capsys):
    random = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for name, size in {"a": (64, 64), "b": (64, 64), "c": (64, 128)}.items():
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / "pictures" / f"{name}.png")
        (tmp_path / "pictures" / f"{name}.txt").write_text(name)
    out = tmp_path / "fast.safetensors"
    source = ["--checkpoint", checkpoints / "sd3", "--data", tmp_path / "pictures", "--out", out, *SMALL]
    code, result = run(capsys, *source, "--objective", "pcm", "--phases", "2", "--omega", "1", "2", "--solver", "heun")
    assert code == 0, result
    assert (result["examples"], result["steps"], result["rank"]) == (3, 2, 4)
    vector = LoRAVector.load(out)
    assert vector.norm() > 0 and read_sampling(vector.metadata).gamma.default == 0
    pipeline = StableDiffusion3Pipeline.from_pretrained(checkpoints / "sd3", local_files_only=True)
    pipeline.load_lora_weights(str(out))
    loaded = [name for name, _ in pipeline.transformer.named_modules() if name.endswith("lora_A")]
    assert len(loaded) == len(vector) == result["modules"] > 20


def test_a_model_with_its_own_guidance_is_distilled_without_another(checkpoints, tmp_path, capsys, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a b\nc\n")
    seen = []
    conditions_of = type(load_teacher(checkpoints / "flux")).conditions_of
    monkeypatch.setattr(
        "lcm_core.distill.flow_pipeline.FlowTeacher.conditions_of",
        lambda self, prompts, size: seen.extend(prompts) or conditions_of(self, prompts, size),
    )
    source = ["--checkpoint", checkpoints / "flux", "--prompts", tmp_path / "prompts.txt", "--teacher-steps", "2"]
    code, result = run(capsys, *source, "--out", tmp_path / "fast.safetensors", *SMALL)
    assert code == 0, result
    assert seen == ["a b", "c"]
    assert LoRAVector.load(tmp_path / "fast.safetensors").norm() > 0
    code, result = run(capsys, *source, "--out", tmp_path / "guided.safetensors", *SMALL, "--omega", "1", "2")
    assert code == 0 and "" in seen


def test_the_teacher_has_the_models_shift_size_and_guidance(checkpoints):
    sd3, flux = (load_teacher(checkpoints / name, size=1024) for name in ("sd3", "flux"))
    assert sd3.schedule.flow == Flow(3.0)
    assert flux.schedule.flow.shift == pytest.approx(np.exp(1.15))
    assert (flux.guides_itself, sd3.guides_itself) == (True, False)
    assert float(flux.conditions("a", (64, 64))[2]) == 3.5
    assert (sd3.shape(64), sd3.cell) == ((4, 8, 8), 8)
    with pytest.raises(ValueError, match="frames 5 are of a video"):
        sd3.shape(64, 5)
    for teacher in (sd3, flux):
        several = teacher.conditions_of(["a b", "c"], (64, 64))
        for prompt, cond in zip(("a b", "c"), several, strict=True):
            torch.testing.assert_close(cond, teacher.conditions(prompt, (64, 64)))
    pixels = torch.rand(2, 3, 64, 64)
    latent = sd3.encode(pixels)
    decoded = (sd3.pipeline.vae.encode(2 * pixels - 1).latent_dist.mean - 0.1) * 1.5
    torch.testing.assert_close(latent, decoded)


def test_all_weights_of_a_flow_are_its_transformers(checkpoints, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a\n")
    out = tmp_path / "full.safetensors"
    source = ["--checkpoint", checkpoints / "sd3", "--prompts", tmp_path / "p.txt", "--teacher-steps", 1, "--out", out]
    code, result = run(capsys, *source, *SMALL, "--full", "--learning-rate", "1e-3", "--validate", tmp_path / "p.txt")
    assert code == 0 and result["validation distance"] > 0, result
    tensors, plain = load_file(out), load_teacher(checkpoints / "sd3").network.state_dict()
    assert tensors.keys() == plain.keys() and {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert sum(not torch.equal(t, plain[name].bfloat16()) for name, t in tensors.items()) > 20


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_encoded_is_decoded(name):
    """An autoencoder that changes nothing itself: each family's shift and scale, there and back."""
    channels = {"latents_mean": [0.1, -0.2, 0.3], "latents_std": [2.0, 3.0, 0.5]}
    config = types.SimpleNamespace(shift_factor=0.1, scaling_factor=1.5, **channels)
    vae = types.SimpleNamespace(
        config=config,
        encode=lambda x: types.SimpleNamespace(latent_dist=types.SimpleNamespace(mean=x)),
        decode=lambda x: types.SimpleNamespace(sample=x),
    )
    pixels = torch.rand(2, 3, 4, 4)
    latents = FAMILIES[name].encode(vae, pixels)
    assert not torch.allclose(latents.squeeze(), pixels)
    torch.testing.assert_close(FAMILIES[name].decode(vae, latents).reshape(2, 3, 4, 4), pixels)


def test_settings_that_do_not_fit_are_errors(checkpoints, tmp_path, capsys):
    source = ["--checkpoint", checkpoints / "sd3", "--prompts", tmp_path / "p.txt", "--out", tmp_path / "x.safetensors"]
    (tmp_path / "p.txt").write_text("a\n")
    code, result = run(capsys, *source, *SMALL, "--phases", "2")
    assert code == 1 and "lcd have no option phases" in result["error"]
    code, result = run(capsys, *source, *SMALL, "--frames", "5", "--teacher-steps", "1")
    assert code == 1 and "frames 5 are of a video" in result["error"]
