"""Files of diffusers and PEFT read by us, and ours by them: an SDXL pipeline with both text encoders."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lcm_core.distill.adapters import LCM_TARGETS
from lcm_core.lora import Factors, LoRAVector, canonical_name, flat, spell

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
LINEAR = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def pipeline():
    """A tiny SDXL with the levels, blocks and names of the real one."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 20, "projection_dim": 16, "num_attention_heads": 2}
    text = CLIPTextConfig(**sizes, num_hidden_layers=2, vocab_size=32, max_position_embeddings=8)
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=None,
        tokenizer_2=None,
        unet=UNet2DConditionModel(
            block_out_channels=(8, 16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2),
            attention_head_dim=4,
            cross_attention_dim=32,
            norm_num_groups=4,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64,
        ),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
    )


def deltas(pipe):
    """Canonical name -> Delta W of every adapted module."""
    found = {}
    for component in COMPONENTS:
        for name, module in getattr(pipe, component).named_modules():
            if isinstance(module, BaseTunerLayer):
                (adapter,) = module.scaling
                found[canonical_name(f"{component}.{name}")] = module.get_delta_weight(adapter).detach()
    return found


def assert_same(vector, expected):
    assert vector.modules.keys() == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(vector.delta(name), delta, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def trained():
    """A pipeline with random adapters of other ranks and alphas in each part, and their state dicts."""
    pipe = pipeline()
    common = {"init_lora_weights": False}
    alphas = {"^down_blocks.0.resnets.0.conv1": 3, "conv1": 9, "to_q": 7}
    unet = {"rank_pattern": {"conv1": 2, "to_q": 5}, "alpha_pattern": alphas, **common}
    configs = {
        "unet": LoraConfig(r=4, lora_alpha=8, target_modules=list(LCM_TARGETS), **unet),
        "text_encoder": LoraConfig(r=2, lora_alpha=6, target_modules=LINEAR, init_lora_weights=False),
        "text_encoder_2": LoraConfig(
            r=3, lora_alpha=1, target_modules=LINEAR, init_lora_weights=False, use_rslora=True
        ),
    }
    for component, config in configs.items():
        getattr(pipe, component).add_adapter(config)
    return pipe, {component: get_peft_model_state_dict(getattr(pipe, component)) for component in COMPONENTS}


@pytest.fixture(scope="module")
def style(trained, tmp_path_factory):
    """What diffusers' save_lora_weights makes of them, read by us."""
    pipe, states = trained
    folder = tmp_path_factory.mktemp("style")
    layers = {f"{component}_lora_layers": state for component, state in states.items()}
    metadata = {f"{c}_lora_adapter_metadata": getattr(pipe, c).peft_config["default"].to_dict() for c in COMPONENTS}
    pipe.save_lora_weights(folder, **layers, **metadata)
    return LoRAVector.load(folder / "pytorch_lora_weights.safetensors")


def test_reads_what_an_sdxl_pipeline_saves(trained, style):
    assert_same(style, deltas(trained[0]))


@pytest.mark.parametrize("dialect", ["kohya", "peft"])
def test_an_sdxl_pipeline_reads_what_we_save(trained, style, tmp_path, dialect):
    """A sum of vectors of other ranks and alphas, of which one has a single module."""
    name = "unet.mid_block.resnets.0.conv1"
    expected = {name: -0.3 * delta for name, delta in deltas(trained[0]).items()}
    out, *rest = expected[name].shape
    g = torch.Generator().manual_seed(0)
    down, up = torch.randn(3, *rest, generator=g), torch.randn(out, 3, 1, 1, generator=g)
    expected[name] = expected[name] + (up.flatten(1) @ down.flatten(1)).reshape(out, *rest)
    vector = -0.3 * style + 2 * LoRAVector({name: Factors(down, up, 1.5)})
    vector.save(tmp_path / "ours.safetensors", dialect)
    reader = pipeline()
    reader.load_lora_weights(tmp_path, weight_name="ours.safetensors")
    found = deltas(reader)
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(found[name], delta, rtol=1e-4, atol=1e-5)


def test_diffusers_and_we_read_a_kohya_file_of_ldm_blocks_alike(style, tmp_path):
    """As kohya's trainers name SDXL's style LoRAs; our PEFT file of it gives diffusers the same again."""
    attentions = {n: f for n, f in style.modules.items() if ".attentions." in n and n.startswith("unet.")}
    native = spell(attentions, "native")
    state = {}
    for name, factors in attentions.items():
        module = "lora_unet_" + flat(native[name].removeprefix("diffusion_model."))
        state[f"{module}.lora_down.weight"], state[f"{module}.lora_up.weight"] = factors.down, factors.up
        state[f"{module}.alpha"] = torch.tensor(3.0)
    assert "lora_unet_output_blocks_0_1_transformer_blocks_0_attn1_to_q.alpha" in state
    save_file(state, tmp_path / "theirs.safetensors")
    vector = LoRAVector.load(tmp_path / "theirs.safetensors")
    vector.save(tmp_path / "ours.safetensors", "peft")
    for name in ("theirs", "ours"):
        reader = pipeline()
        reader.load_lora_weights(tmp_path, weight_name=f"{name}.safetensors")
        assert_same(vector, deltas(reader))


def test_reads_diffusers_kohya_export(trained):
    """`convert_state_dict_to_kohya`, by which its training scripts write for other programs; its alpha is the rank."""
    pipe, states = trained
    state = {f"{component}.{key}": value for component in COMPONENTS for key, value in states[component].items()}
    exported = convert_state_dict_to_kohya(state)
    vector = LoRAVector.from_state_dict(exported)
    assert vector.modules.keys() == deltas(pipe).keys()
    for component in COMPONENTS:
        for name, module in getattr(pipe, component).named_modules():
            if isinstance(module, BaseTunerLayer):
                unscaled = module.get_delta_weight("default").detach() / module.scaling["default"]
                torch.testing.assert_close(vector.delta(canonical_name(f"{component}.{name}")), unscaled)


def test_peft_reads_what_we_save(style):
    """`set_peft_model_state_dict` on a model with adapters of the saved ranks and alpha = rank."""
    unet = {name: factors for name, factors in style.modules.items() if name.startswith("unet.")}
    ranks = {name.removeprefix("unet."): factors.rank for name, factors in unet.items()}
    model = pipeline().unet
    config = {"rank_pattern": ranks, "alpha_pattern": ranks, "target_modules": list(ranks)}
    model.add_adapter(LoraConfig(r=1, lora_alpha=1, **config))
    state = LoRAVector(unet).state_dict("peft")
    result = set_peft_model_state_dict(model, {key.removeprefix("unet."): value for key, value in state.items()})
    assert not result.unexpected_keys
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            torch.testing.assert_close(module.get_delta_weight("default"), style.delta(f"unet.{name}"))


def test_peft_s_named_adapters(tmp_path):
    """One of two adapters of a PeftModel, saved into a folder of its name; and the model that PEFT makes of that."""
    config = {"target_modules": ["to_q", "conv1"], "init_lora_weights": False}
    model = get_peft_model(pipeline().unet, LoraConfig(r=2, lora_alpha=2, **config), adapter_name="other")
    model.add_adapter("style", LoraConfig(r=3, lora_alpha=5, **config))
    model.save_pretrained(tmp_path, selected_adapters=["style"])
    vector = LoRAVector.load(tmp_path / "style" / "adapter_model.safetensors")
    read = PeftModel.from_pretrained(pipeline().unet, tmp_path / "style").base_model.model
    layers = {f"unet.{n}": m for n, m in read.named_modules() if isinstance(m, BaseTunerLayer)}
    assert_same(vector, {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()})


def test_raw_tensors_of_a_named_adapter():
    """`model.state_dict()` of diffusers' scripts keeps the adapter's name in the keys; its config may come with it."""
    unet = pipeline().unet
    config = LoraConfig(r=2, lora_alpha=5, target_modules=["to_q", "conv1"], init_lora_weights=False)
    unet.add_adapter(config, adapter_name="lcm")
    raw = {f"unet.{key}": value for key, value in unet.state_dict().items() if ".lora_" in key}
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 5, "unet.r": 2})}
    layers = {f"unet.{n}": m for n, m in unet.named_modules() if isinstance(m, BaseTunerLayer)}
    expected = {name: layer.get_delta_weight("lcm").detach() for name, layer in layers.items()}
    assert_same(LoRAVector.from_state_dict(raw, metadata), expected)
