"""Small LoRA files of every dialect and adapter kind, from which the fuzzing starts."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from lcm_core.lora import Factors, LoRAVector

Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
SHAPES = {
    Q: (12, 8),
    "unet.up_blocks.1.resnets.0.conv1": (8, 6, 3, 3),
    "unet.down_blocks.0.attentions.0.proj_in": (8, 8, 1, 1),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": (10, 7),
}
RECORD = {
    "lcm_lora.expression": "0.8*style + 1*lcm",
    "lcm_lora.parents": json.dumps([{"name": "style", "file": "style.safetensors", "sha256": "0" * 64, "weight": 0.8}]),
    "modelspec.title": "mix", "ss_network_dim": "4",
}  # fmt: skip
ADAPTER = json.dumps({"r": 2, "lora_alpha": 4, "alpha_pattern": {"conv_in": 2}, "rank_pattern": {}})

Seed = tuple[dict[str, Tensor], dict[str, str]]


def vector() -> LoRAVector:
    g = torch.Generator().manual_seed(0)
    modules = {
        name: Factors(
            torch.randn(3, *shape[1:], generator=g), torch.randn(shape[0], 3, *[1] * (len(shape) - 2), generator=g), 2.0
        )
        for name, shape in SHAPES.items()
    }
    return LoRAVector(modules)


def every_kind() -> Seed:
    """A small module of every kind that is read as a vector, with the metadata of a PEFT adapter."""
    kinds = {
        "unet.conv_in.lora_A.weight": (2, 3, 3, 3), "unet.conv_in.lora_B.weight": (4, 2, 1, 1),
        "lora_unet_conv_out.lora_down.weight": (2, 3), "lora_unet_conv_out.lora_mid.weight": (2, 2, 3, 3),
        "lora_unet_conv_out.lora_up.weight": (4, 2), "lora_unet_conv_out.alpha": (),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a": (5, 2),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_b": (2, 6),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w2_a": (5, 1),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w2_b": (1, 6),
        "lora_te_text_model_encoder_layers_0_mlp_fc2.lokr_w1": (2, 2),
        "lora_te_text_model_encoder_layers_0_mlp_fc2.lokr_w2_a": (3, 2),
        "lora_te_text_model_encoder_layers_0_mlp_fc2.lokr_w2_b": (2, 3),
        "lora_te_text_model_final_layer_norm.diff": (4,), "lora_te_text_model_final_layer_norm.diff_b": (4,),
    }  # fmt: skip
    return _random(kinds), {"lora_adapter_metadata": ADAPTER}


def seeds() -> list[Seed]:
    """(tensors, metadata) of every dialect, older spellings, every dtype of LoRA files and every kind."""
    found = [every_kind()]
    for dialect in ("kohya", "peft", "native"):
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn):
            state = vector().state_dict(dialect, torch.float32)
            found.append(({key: tensor.to(dtype) for key, tensor in state.items()}, RECORD))
    trained = {f"base_model.model.{key.removeprefix('unet.')}": t for key, t in vector().state_dict("peft").items()}
    found.append((trained, {"lora_adapter_metadata": ADAPTER}))
    old = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora"
    found.append((_random({f"{old}.down.weight": (3, 8), f"{old}.up.weight": (12, 3)}), {}))
    module = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    others = [
        {"hada_w1_a": (2, 8), "hada_w1_b": (2, 8), "hada_w2_a": (2, 8), "hada_w2_b": (2, 8),
         "hada_t1": (2, 2, 3, 3), "hada_t2": (2, 2, 3, 3), "alpha": ()},
        {"lokr_w1_a": (2, 2), "lokr_w1_b": (2, 2), "lokr_w2": (4, 4), "alpha": ()},
        {"lokr_w1": (2, 2), "lokr_t2": (2, 2, 3, 3), "lokr_w2_a": (2, 4), "lokr_w2_b": (2, 4)},
        {"lora_down.weight": (2, 8), "lora_up.weight": (8, 2), "dora_scale": (8, 1), "alpha": ()},
        {"a1.weight": (8, 2), "a2.weight": (2, 8), "b1.weight": (8, 2), "b2.weight": (2, 8)},
        {"oft_blocks": (2, 4, 4), "alpha": ()}, {"oft_blocks": (2, 4, 4), "rescale": (8, 1)},
        {"oft_R.weight": (2, 6)}, {"diff": (8, 8), "diff_b": (8,)}, {"set_weight": (8, 8)},
    ]  # fmt: skip
    flux = {"double_blocks.3.img_attn.qkv": (24, 8), "single_blocks.0.linear1": (56, 8), "img_in": (8, 4)}
    flux |= {"transformer.transformer_blocks.1.attn.to_k": (8, 8), "transformer.norm_out.linear": (16, 8)}
    split = {f"{name}.lora_A.weight": (2, columns) for name, (_, columns) in flux.items()}
    found.append((_random(split | {f"{name}.lora_B.weight": (rows, 2) for name, (rows, _) in flux.items()}), RECORD))
    found += [(_random({f"{module}.{role}": shape for role, shape in roles.items()}), RECORD) for roles in others]
    return found


def _random(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=g) for key, shape in shapes.items()}
