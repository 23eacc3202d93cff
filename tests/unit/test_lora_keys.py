import math

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from lcm_core.distill.adapters import LCM_TARGETS
from lcm_core.lora import LoRAVector, canonical_name, flat, spell
from lcm_core.lora.file import LoRAFile
from lcm_core.lora.kinds import split_key

TARGETS = tuple(f".{target}" for target in LCM_TARGETS)
SD15_UPSAMPLERS = {
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv",
    "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
    "up_blocks.2.upsamplers.0.conv": "output_blocks.8.2.conv",
}
SDXL_UPSAMPLERS = {
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
    "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD2 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
# Transformers of another depth in each layer of a block, and none in the middle.
SSD1B = {
    **SDXL,
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": (1, (2, 2), (4, 4)),
    "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
}
# Modules and parameters of an LCM-LoRA of rank 64: LCM-LoRA, arXiv 2311.05556, Table 1; SD2 is not there.
UNETS = {
    "sd15": ({"cross_attention_dim": 768}, SD15_UPSAMPLERS, (278, 67_252_224)),
    "sd2": (SD2, SD15_UPSAMPLERS, (278, None)),
    "sdxl": (SDXL, SDXL_UPSAMPLERS, (788, 196_751_360)),
    "ssd1b": (SSD1B, SDXL_UPSAMPLERS, (423, 104_902_656)),
}


@pytest.fixture(scope="module", params=UNETS)
def table(request):
    """(meta UNet, diffusers path -> LDM path of every module with a weight, modules and parameters of its LCM-LoRA)."""
    config, upsamplers, counts = UNETS[request.param]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    paths = [key.removesuffix(".weight") for key in unet.state_dict() if key.endswith(".weight")]
    native = spell([f"unet.{path}" for path in paths], "native")
    ldm = {path: upsamplers.get(path) or native[f"unet.{path}"].removeprefix("diffusion_model.") for path in paths}
    return unet, ldm, counts


def test_every_ldm_name_is_what_diffusers_converts_to_the_same_module(table):
    unet, ldm, _ = table
    kinds = ("weight", "bias")
    checkpoint = {f"model.diffusion_model.{name}.{kind}": path for path, name in ldm.items() for kind in kinds}
    converted = convert_ldm_unet_checkpoint(checkpoint, dict(unet.config))
    assert len(checkpoint) == 2 * len(ldm)
    found = {key: path for key, path in converted.items() if path}
    assert found == {f"{path}.{kind}": path for path in ldm for kind in kinds}


def test_every_dialect_of_every_module_has_one_canonical_name(table):
    _, ldm, _ = table
    for path, name in ldm.items():
        for spelling in (
            *(path, f"unet.{path}", f"base_model.model.{path}", f"unet.base_model.model.{path}"),
            *(name, f"diffusion_model.{name}", f"model.diffusion_model.{name}"),
            *(f"lora_unet_{flat(path)}", f"lora_unet_{flat(name)}"),
        ):
            assert canonical_name(spelling) == f"unet.{path}", spelling


@pytest.mark.parametrize("dialect", ["kohya", "peft", "native"])
def test_every_module_reads_back_from_its_spelling(table, dialect):
    names = [f"unet.{path}" for path in table[1]]
    spelled = spell(names, dialect)
    assert [canonical_name(spelled[name]) for name in names] == names
    assert len(set(spelled.values())) == len(names)


def test_lcm_lora_targets_are_all_found(table):
    """Files laid out as the released LCM-LoRAs: rank 64, fp16, kohya's names of diffusers' blocks."""
    unet, ldm, (count, parameters) = table
    weights = {path: unet.get_submodule(path).weight for path in ldm if f".{path}".endswith(TARGETS)}
    state = {}
    for path, weight in weights.items():
        out, *rest = weight.shape
        shapes = {"lora_down.weight": (64, *rest), "lora_up.weight": (out, 64, *[1] * (len(rest) - 1)), "alpha": ()}
        for role, shape in shapes.items():
            state[f"lora_unet_{flat(path)}.{role}"] = torch.full((), 64.0, dtype=torch.float16).expand(shape)
    assert len(state) == 3 * count
    vector = LoRAVector.from_state_dict(state)
    assert vector.modules.keys() == {f"unet.{path}" for path in weights}
    assert (vector.rank, vector.parameters) == (64, parameters or vector.parameters)
    for dialect in ("kohya", "peft", "native"):
        assert LoRAVector.from_state_dict(vector.state_dict(dialect)).modules.keys() == vector.modules.keys()
    sizes = LoRAFile.of(LoRAFile.of(state).native()).sizes
    assert sizes == {f"unet.{path}.weight": (len(w), math.prod(w.shape[1:])) for path, w in weights.items()}


ONE_LEVEL = {
    "input_blocks.0.0": "conv_in",
    "input_blocks.1.0.in_layers.2": "down_blocks.0.resnets.0.conv1",
    "input_blocks.1.0.out_layers.0": "down_blocks.0.resnets.0.norm2",
    "input_blocks.1.1.proj_in": "down_blocks.0.attentions.0.proj_in",
    "middle_block.0.emb_layers.1": "mid_block.resnets.0.time_emb_proj",
    "middle_block.1.transformer_blocks.0.ff.net.0.proj": "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "middle_block.2.out_layers.3": "mid_block.resnets.1.conv2",
    "output_blocks.0.0.skip_connection": "up_blocks.0.resnets.0.conv_shortcut",
    "output_blocks.0.1.norm": "up_blocks.0.attentions.0.norm",
    "output_blocks.1.0.in_layers.0": "up_blocks.0.resnets.1.norm1",
    "output_blocks.1.1.transformer_blocks.0.attn2.to_v": "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_v",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "time_embed.cond_proj": "time_embedding.cond_proj",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


@pytest.mark.parametrize("ldm, path", ONE_LEVEL.items())
def test_one_level_unet(ldm, path):
    name = f"unet.{path}"
    for spelling in (f"diffusion_model.{ldm}", ldm, f"lora_unet_{flat(ldm)}", path, f"lora_unet_{flat(path)}"):
        assert canonical_name(spelling) == name
    assert spell([name], "native") == {name: f"diffusion_model.{ldm}"}
    assert spell([name], "kohya") == {name: f"lora_unet_{flat(path)}"}
    assert spell([name], "peft") == {name: name}


def test_upsampler_in_native_is_spelled_so_that_every_architecture_reads_it():
    name = "unet.up_blocks.0.upsamplers.0.conv"
    assert spell([name], "native") == {name: "lora_unet_up_blocks_0_upsamplers_0_conv"}
    assert {canonical_name(f"diffusion_model.output_blocks.2.{slot}.conv") for slot in (1, 2)} == {name}


LAYER = "text_model.encoder.layers.3.self_attn.q_proj"


@pytest.mark.parametrize(
    "spelling, component",
    [
        (f"lora_te_{flat(LAYER)}", "text_encoder"),
        (f"lora_te1_{flat(LAYER)}", "text_encoder"),
        (f"lora_te2_{flat(LAYER)}", "text_encoder_2"),
        (f"text_encoder.{LAYER}", "text_encoder"),
        (f"text_encoder_2.{LAYER}", "text_encoder_2"),
        (f"base_model.model.{LAYER}", "text_encoder"),
        (f"text_encoders.clip_l.transformer.{LAYER}", "text_encoder"),
        (f"clip_h.transformer.{LAYER}", "text_encoder"),
        (f"clip_g.transformer.{LAYER}", "text_encoder_2"),
        (f"text_encoder.{LAYER.removeprefix('text_model.')}", "text_encoder"),
        (f"base_model.model.{LAYER.removeprefix('text_model.')}", "text_encoder"),
        (f"text_encoder_2.{LAYER.replace('q_proj', 'to_q')}", "text_encoder_2"),
    ],
)
def test_text_encoders(spelling, component):
    assert canonical_name(spelling) == f"{component}.{LAYER}"


def test_kohya_numbers_text_encoders_when_there_are_two():
    one, two = f"text_encoder.{LAYER}", f"text_encoder_2.{LAYER}"
    assert spell([one], "kohya")[one] == f"lora_te_{flat(LAYER)}"
    assert spell([one, two], "kohya") == {one: f"lora_te1_{flat(LAYER)}", two: f"lora_te2_{flat(LAYER)}"}


def test_unknown_architecture_keeps_its_spelling_and_compares_flat():
    dotted = canonical_name("diffusion_model.octo_blocks.0.img_attn.proj")
    flattened = canonical_name("lora_unet_octo_blocks_0_img_attn_proj")
    assert dotted == "unet.octo_blocks.0.img_attn.proj"
    assert flattened == "unet.octo_blocks_0_img_attn_proj"
    assert flat(dotted) == flat(flattened)
    assert spell([dotted], "native")[dotted] == "diffusion_model.octo_blocks.0.img_attn.proj"
    assert spell([flattened], "native")[flattened] == "lora_unet_octo_blocks_0_img_attn_proj"
    with pytest.raises(ValueError, match="octo_blocks_0_img_attn_proj lost its dots"):
        spell([flattened], "peft")


def test_text_encoders_of_unknown_architectures_pass_through():
    dotted = "text_encoders.octo.transformer.arms.0.ink"
    assert canonical_name(dotted) == spell([dotted], "native")[dotted] == dotted
    name = "lora_te3_arms_0_ink_q"
    assert canonical_name(name) == name
    for dialect in ("kohya", "peft", "native"):
        assert flat(canonical_name(spell([name], dialect)[name])) == name


def test_names_without_a_component_come_back_unchanged():
    for name in ("", "foo", "transformer.blocks.0.attn", "some_module.weight_x"):
        assert canonical_name(name) == name
        assert canonical_name(canonical_name(name)) == name
    assert spell([], "native") == {}


def test_unknown_dialect():
    with pytest.raises(ValueError, match="'sgm' is unknown; use one of kohya, peft, native"):
        spell([], "sgm")


@pytest.mark.parametrize(
    "key, expected",
    [
        ("lora_unet_a.lora_down.weight", ("lora_unet_a", "down")),
        ("lora_unet_a.lora_mid.weight", ("lora_unet_a", "mid")),
        ("lora_unet_a.alpha", ("lora_unet_a", "alpha")),
        ("unet.a.lora_A.weight", ("unet.a", "down")),
        ("base_model.model.a.lora_B.default.weight", ("base_model.model.a", "up")),
        ("unet.a.lora.up.weight", ("unet.a", "up")),
        ("text_encoder.a.lora_linear_layer.down.weight", ("text_encoder.a", "down")),
        ("unet.a.attn1.processor.to_out_lora.up.weight", ("unet.a.attn1.processor.to_out", "up")),
        ("diffusion_model.a.diff_b", ("diffusion_model.a", "diff_b")),
        ("a.dora_scale", ("a", "dora_scale")),
        ("a.lora_magnitude_vector.default.weight", ("a", "dora_scale")),
        ("a.hada_w1_a", ("a", "hada_w1_a")),
        ("a.hada_t2.default", ("a", "hada_t2")),
        ("a.lokr_w1", ("a", "lokr_w1")),
        ("a.lokr_w1_b", ("a", "lokr_w1_b")),
        ("a.lora_magnitude_vector", ("a", "dora_scale")),
        ("a.w_norm", ("a", "diff")),
        ("a.hada_x", None),
        ("a.alpha\n", None),
        ("a.a1.weight", ("a", "a1")),
        ("a.oft_blocks", ("a", "oft_blocks")),
        ("a.oft_R.default.weight", ("a", "oft_R")),
        ("a.rescale", ("a", "rescale")),
        ("a.lora_B.bias", ("a", "bias")),
        ("a.lora_B.default.bias", ("a", "bias")),
        ("a.weight", None),
        (".alpha", None),
    ],
)
def test_split_key(key, expected):
    assert split_key(key) == expected


def test_oldest_diffusers_processor_names():
    block = "unet.mid_block.attentions.0.transformer_blocks.0.attn1"
    assert canonical_name(f"{block}.processor.to_q") == f"{block}.to_q"
    assert canonical_name(f"{block}.processor.to_out") == f"{block}.to_out.0"
    text = "text_encoder.text_model.encoder.layers.0.self_attn"
    assert split_key(f"{text}.to_out_lora.down.weight") == (f"{text}.to_out", "down")
    assert canonical_name(f"{text}.to_out") == f"{text}.out_proj"
