"""The names that sd-scripts and musubi-tuner write: every Linear in the blocks that they train, flattened.

Each walks its own network for the classes of `TARGET_REPLACE_MODULE`, takes every Linear in them that no default
pattern excludes, and calls it `lora_unet_` and its path with underscores: sd-scripts' networks/lora_flux.py,
lora_sd3.py, lora_lumina.py, lora_anima.py and lora_hunyuan_image.py over library/*_models.py, musubi-tuner's
networks/lora.py, lora_wan.py, lora_qwen_image.py, lora_zimage.py, lora_flux_2.py, lora_kandinsky.py, lora_krea2.py,
lora_framepack.py and lora_hv_1_5.py over its models. What they find in networks of a block a stack follows.
"""

import re

import pytest
from tiny_transformers import build, layers

from lcm_core.lora.names import read_name
from lcm_core.lora.names.writing import write_names

QKV, ADDED = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")
DOUBLE = [f"double_blocks_0_{stream}_{leaf}" for stream in ("img", "txt") for leaf in ("attn_qkv", "attn_proj")]
FLUX_MLPS = [f"double_blocks_0_{stream}_mlp_{i}" for stream in ("img", "txt") for i in (0, 2)]
FLUX2 = [*DOUBLE, *FLUX_MLPS, "single_blocks_0_linear1", "single_blocks_0_linear2"]
SD3_BLOCK = ["adaLN_modulation_1", "attn_qkv", "attn_proj", "mlp_fc1", "mlp_fc2"]
SD3 = [
    *(f"joint_blocks_0_{stream}_block_{leaf}" for stream in ("x", "context") for leaf in SD3_BLOCK),
    *(f"joint_blocks_0_x_block_attn2_{leaf}" for leaf in ("qkv", "proj")),
    *(f"joint_blocks_1_x_block_{leaf}" for leaf in SD3_BLOCK),
    *(f"joint_blocks_1_context_block_{leaf}" for leaf in SD3_BLOCK[:2]),
]
LUMINA_BLOCK = ["attention_qkv", "attention_out", *(f"feed_forward_w{i}" for i in (1, 2, 3))]
LUMINA = [
    *(f"{stack}_0_{leaf}" for stack in ("layers", "noise_refiner", "context_refiner") for leaf in LUMINA_BLOCK),
    *("layers_0_adaLN_modulation_1", "noise_refiner_0_adaLN_modulation_1"),
]
WAN = [f"blocks_0_{attn}_attn_{leaf}" for attn in ("self", "cross") for leaf in "qkvo"]
QWEN = [
    *(f"transformer_blocks_0_attn_{leaf}" for leaf in (*QKV, *ADDED, "to_out_0", "to_add_out")),
    *(f"transformer_blocks_0_{stream}_mlp_net_{leaf}" for stream in ("img", "txt") for leaf in ("0_proj", "2")),
    *(f"transformer_blocks_0_{stream}_mod_1" for stream in ("img", "txt")),
]
KANDINSKY_ATTENTION = ("to_query", "to_key", "to_value", "out_layer")
KANDINSKY = [
    *(f"{block}_transformer_blocks_0_self_attention_{leaf}" for block in ("text", "visual")
      for leaf in KANDINSKY_ATTENTION),
    *(f"visual_transformer_blocks_0_cross_attention_{leaf}" for leaf in KANDINSKY_ATTENTION),
    *(f"{block}_transformer_blocks_0_feed_forward_{leaf}" for block in ("text", "visual")
      for leaf in ("in_layer", "out_layer")),
]  # fmt: skip
COSMOS = [
    *(f"blocks_0_{attn}_attn_{leaf}_proj" for attn in ("self", "cross") for leaf in ("q", "k", "v", "output")),
    *(f"blocks_0_mlp_layer{i}" for i in (1, 2)),
    *(f"blocks_0_adaln_modulation_{leaf}_{i}" for leaf in ("self_attn", "cross_attn", "mlp") for i in (1, 2)),
]
# Network -> the names, and of the layers of diffusers' network those that are trained.
WRITTEN = {
    "Flux": ([*FLUX2, *(f"double_blocks_0_{s}_mod_lin" for s in ("img", "txt")), "single_blocks_0_modulation_lin"],
             r"(single_)?transformer_blocks"),
    "Flux.2": (FLUX2, r"(single_)?transformer_blocks"),
    "Stable Diffusion 3": (SD3, r"transformer_blocks"),
    "Lumina 2": (LUMINA, r"layers|noise_refiner|context_refiner"),
    "Wan": ([*WAN, "blocks_0_cross_attn_k_img", "blocks_0_cross_attn_v_img", "blocks_0_ffn_0", "blocks_0_ffn_2"],
            r"blocks"),
    "Qwen-Image": (QWEN, r"transformer_blocks"),
    "Kandinsky 5": (KANDINSKY, r"(text|visual)_transformer_blocks(?!.*modulation)"),
    "Cosmos Predict2": (COSMOS, r"transformer_blocks"),
}  # fmt: skip
AUTHORS = [
    *(f"double_blocks_0_{s}_{leaf}" for s in ("img", "txt") for leaf in ("mlp_fc1", "mlp_fc2", "mod_linear")),
    *("single_blocks_0_linear1", "single_blocks_0_linear2", "single_blocks_0_modulation_linear"),
]
# The same where ComfyUI has other names, which both programs convert to and we write; theirs are read.
READ = {
    "HunyuanVideo": ([*DOUBLE, *AUTHORS], r"(single_)?transformer_blocks"),
    "HunyuanVideo 1.5": (
        [*(f"double_blocks_0_{s}_attn_{leaf}" for s in ("img", "txt") for leaf in ("q", "k", "v", "proj")),
         *AUTHORS[:6]],
        r"transformer_blocks",
    ),
    "HunyuanImage": ([*DOUBLE, *AUTHORS], r"(single_)?transformer_blocks"),
    "Z-Image": (
        [*(f"layers_0_attention_{leaf}" for leaf in (*QKV, "to_out_0")),
         *(f"layers_0_feed_forward_w{i}" for i in (1, 2, 3))],
        r"layers(?!.*adaLN)",
    ),
    "FramePack": (
        [*(f"transformer_blocks_0_attn_{leaf}" for leaf in (*QKV, *ADDED, "to_out_0", "to_add_out")),
         *(f"transformer_blocks_0_ff{s}_net_{leaf}" for s in ("", "_context") for leaf in ("0_proj", "2")),
         *(f"single_transformer_blocks_0_{leaf}" for leaf in (*(f"attn_{x}" for x in QKV), "proj_mlp", "proj_out"))],
        r"(single_)?transformer_blocks(?!.*norm)",
    ),
}  # fmt: skip


def parts_of(network, trained):
    paths = [path for path in layers(build(network)) if re.match(trained, path)]
    return [part for path in paths for part in read_name(f"transformer.{path}").parts]


@pytest.mark.parametrize("network", WRITTEN)
def test_kohya_files_have_the_trainers_names(network):
    names, trained = WRITTEN[network]
    written = [place.name for place in write_names(parts_of(network, trained), "kohya", [network])]
    assert sorted(written) == sorted(f"lora_unet_{name}" for name in names)


@pytest.mark.parametrize("network", WRITTEN | READ)
def test_every_module_of_the_trainers_is_read(network):
    names, trained = (WRITTEN | READ)[network]
    parts = [part for name in names for part in read_name(f"lora_unet_{name}").parts]
    assert sorted(parts) == sorted(parts_of("HunyuanVideo" if network == "FramePack" else network, trained))


@pytest.mark.parametrize("network", ["HunyuanVideo", "HunyuanVideo 1.5", "HunyuanImage", "Z-Image"])
def test_where_comfyui_has_other_names_a_kohya_file_has_those(network):
    """networks/convert_hunyuan_image_lora_to_comfy.py, convert_hunyuan_video_1_5_lora_to_comfy.py and
    convert_z_image_lora_to_comfy.py rename and fuse as follows."""
    names, trained = READ[network]
    parts = [part for name in names for part in read_name(f"lora_unet_{name}").parts]
    renamed = {
        name.replace("mlp_fc1", "mlp_0").replace("mlp_fc2", "mlp_2").replace("mod_linear", "mod_lin")
        .replace("modulation_linear", "modulation_lin").replace("to_out_0", "out")
        for name in names
    }  # fmt: skip
    fused = {re.sub(r"(attention_)to_[qkv]$|(attn_)[qkv]$", r"\1\2qkv", name) for name in renamed}
    written = {place.name for place in write_names(parts, "kohya", [network])}
    assert written == {f"lora_unet_{name}" for name in fused}
