"""Shrunken models of every architecture, in ComfyUI's own Python: what a LoRA is put into."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch

FLUX = {
    "axes_dim": [16, 56, 56], "num_heads": 1, "mlp_ratio": 4.0, "theta": 10000, "out_channels": 16, "qkv_bias": True,
    "in_channels": 16, "hidden_size": 128, "context_in_dim": 64, "patch_size": 2, "depth": 2, "depth_single_blocks": 2,
    "txt_ids_dims": [], "vec_in_dim": None,
}  # fmt: skip
HUNYUAN = {
    "image_model": "hunyuan_video", "patch_size": [1, 2, 2], "vec_in_dim": 48, "meanflow": False, "theta": 256,
    "byt5": False, "guidance_embed": True, "use_cond_type_embedding": False, "vision_in_dim": None,
    "meanflow_sum": False,
}  # fmt: skip
COSMOS = {
    "max_img_h": 16, "max_img_w": 16, "max_frames": 4, "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 128, "num_blocks": 2, "concat_padding_mask": True, "num_heads": 2,
    "crossattn_emb_channels": 48, "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "min_fps": 1, "max_fps": 30,
    "pos_emb_interpolation": "crop", "use_adaln_lora": True, "adaln_lora_dim": 32,
    "extra_per_block_abs_pos_emb": False, "rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0,
    "rope_t_extrapolation_ratio": 1.0,
}  # fmt: skip
WAN = {
    "image_model": "wan2.1", "dim": 128, "out_dim": 16, "num_heads": 1, "ffn_dim": 192, "num_layers": 2, "eps": 1e-6,
    "patch_size": (1, 2, 2), "freq_dim": 32, "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True,
    "text_dim": 48,
}  # fmt: skip
LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "cap_feat_dim": 48, "n_layers": 2, "qk_norm": True,
    "axes_lens": [300, 512, 512], "rope_theta": 256.0, "ffn_dim_multiplier": 4.0,
}  # fmt: skip
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Flux.1": ("Flux", {**FLUX, "image_model": "flux", "vec_in_dim": 48, "guidance_embed": True}),
    "Flux.2": ("Flux", {
        **FLUX, "image_model": "flux2", "axes_dim": [32, 32, 32, 32], "mlp_ratio": 3.0, "global_modulation": True,
        "vec_in_dim": None, "mlp_silu_act": True, "qkv_bias": False, "ops_bias": False, "patch_size": 1,
        "default_ref_method": "index", "ref_index_scale": 10.0, "guidance_embed": True,
    }),
    "Chroma": ("Chroma", {
        **FLUX, "image_model": "chroma", "in_dim": 32, "out_dim": 128, "hidden_dim": 64, "n_layers": 2,
    }),
    "Stable Diffusion 3": ("SD3", {
        "input_size": None, "in_channels": 16, "out_channels": 16, "patch_size": 2, "depth": 3, "num_patches": 64,
        "pos_embed_max_size": 8, "adm_in_channels": 64, "qk_norm": "rms", "pos_embed_scaling_factor": None,
        "x_block_self_attn_layers": [0, 1],
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 96, "out_features": 192}},
    }),
    "AuraFlow": ("AuraFlow", {
        "max_seq": 64, "cond_seq_dim": 48, "n_double_layers": 1, "n_layers": 3, "dim": 128, "n_heads": 1,
        "global_conddim": 128,
    }),
    "PixArt": ("PixArt", {
        "image_model": "pixart_sigma", "num_heads": 2, "patch_size": 2, "hidden_size": 96, "in_channels": 4,
        "depth": 2, "model_max_length": 8, "input_size": 16, "pe_interpolation": 1, "micro_condition": False,
        "caption_channels": 48,
    }),
    "HunyuanVideo": ("HunyuanVideo", {**FLUX, **HUNYUAN}),
    "HunyuanVideo 1.5": ("HunyuanVideo", {
        **FLUX, **HUNYUAN, "depth_single_blocks": 0, "vec_in_dim": None, "byt5": True, "guidance_embed": False,
        "use_cond_type_embedding": True, "vision_in_dim": 48,
    }),
    "HunyuanImage": ("HunyuanVideo", {
        **FLUX, **HUNYUAN, "axes_dim": [64, 64], "patch_size": [2, 2], "vec_in_dim": None, "byt5": True,
        "meanflow": True,
    }),
    "Lumina 2": ("Lumina2", {**LUMINA, "dim": 288, "n_heads": 3, "n_kv_heads": 1, "axes_dims": [32, 32, 32]}),
    "Z-Image": ("Lumina2", {
        **LUMINA, "dim": 128, "n_heads": 1, "n_kv_heads": 1, "axes_dims": [32, 48, 48], "z_image_modulation": True,
        "time_scale": 1000.0, "pad_tokens_multiple": 32,
    }),
    "Qwen-Image": ("QwenImage", {
        "image_model": "qwen_image", "in_channels": 64, "num_layers": 2, "num_attention_heads": 1,
        "joint_attention_dim": 48,
    }),
    "Wan 2.1 T2V": ("WAN21", {**WAN, "in_dim": 16, "model_type": "t2v"}),
    "Wan 2.1 I2V": ("WAN21", {**WAN, "in_dim": 36, "model_type": "i2v"}),
    "LTX-Video": ("LTXV", {
        "image_model": "ltxv", "num_layers": 2, "attention_head_dim": 64, "num_attention_heads": 2,
        "cross_attention_dim": 128, "caption_channels": 48,
    }),
    "HiDream": ("HiDream", {
        "image_model": "hidream", "attention_head_dim": 64, "axes_dims_rope": [32, 16, 16], "in_channels": 16,
        "caption_channels": [48, 48], "max_resolution": [16, 16], "llama_layers": [0, 1, 1], "num_layers": 1,
        "num_attention_heads": 2, "num_routed_experts": 2, "num_activated_experts": 1, "num_single_layers": 2,
        "out_channels": 16, "patch_size": 2, "text_emb_dim": 48,
    }),
    "ACE-Step": ("ACEStep", {
        "audio_model": "ace", "attention_head_dim": 64, "in_channels": 8, "inner_dim": 128, "max_height": 16,
        "max_position": 64, "max_width": 64, "mlp_ratio": 2.5, "num_attention_heads": 2, "num_layers": 2,
        "out_channels": 8, "patch_size": [16, 1], "rope_theta": 1e6, "speaker_embedding_dim": 32,
        "text_embedding_dim": 48, "ssl_encoder_depths": [2, 2], "ssl_latent_dims": [32, 24],
        "ssl_names": ["mert", "m-hubert"], "lyric_encoder_vocab_size": 10, "lyric_hidden_size": 64,
    }),
    "Cosmos Predict2": ("CosmosPredict2", {**COSMOS, "image_model": "cosmos_predict2"}),
    "Anima": ("Anima", {**COSMOS, "image_model": "anima"}),
    "LTX-2": ("LTXAV", {
        "image_model": "ltxav", "num_layers": 2, "attention_head_dim": 64, "num_attention_heads": 2,
        "cross_attention_dim": 128, "audio_attention_head_dim": 32, "audio_num_attention_heads": 2,
        "audio_cross_attention_dim": 64, "caption_channels": 48, "apply_gated_attention": True,
        "connector_num_layers": 1, "connector_attention_head_dim": 24, "connector_num_attention_heads": 2,
    }),
    "Kandinsky 5": ("Kandinsky5", {
        "image_model": "kandinsky5", "in_text_dim": 48, "in_text_dim2": 32, "time_dim": 64, "model_dim": 128,
        "ff_dim": 192, "num_text_blocks": 1, "num_visual_blocks": 2,
    }),
    "ACE-Step 1.5": ("ACEStep15", {
        "audio_model": "ace1.5", "hidden_size": 128, "text_hidden_dim": 48, "timbre_hidden_dim": 32, "head_dim": 64,
        "audio_acoustic_hidden_dim": 32, "in_channels": 96, "num_dit_layers": 2, "num_lyric_layers": 1,
        "num_timbre_layers": 1, "num_tokenizer_layers": 1, "num_heads": 2, "num_kv_heads": 1,
        "intermediate_size": 192, "fsq_dim": 128, "encoder_hidden_size": 128, "encoder_intermediate_size": 192,
        "encoder_num_heads": 2,
    }),
    "ERNIE-Image": ("ErnieImage", {
        "image_model": "ernie", "hidden_size": 128, "num_attention_heads": 1, "num_layers": 2, "text_in_dim": 48,
        "ffn_hidden_size": 192, "in_channels": 16, "out_channels": 16,
    }),
    "Krea 2": ("Krea2", {
        "image_model": "krea2", "features": 256, "tdim": 32, "txtdim": 128, "heads": 2, "kvheads": 1, "layers": 2,
        "multiplier": 1, "txtlayers": 2, "txtheads": 2, "txtkvheads": 2,
    }),
}  # fmt: skip


# Networks that have other layers than the family whose names they have.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "OmniGen2": ("Omnigen2", {
        "image_model": "omnigen2", "patch_size": 2, "in_channels": 16, "hidden_size": 288, "num_layers": 2,
        "num_refiner_layers": 1, "num_attention_heads": 3, "num_kv_heads": 1, "axes_dim_rope": (32, 32, 32),
        "text_feat_dim": 48,
    }),
}  # fmt: skip
# Network -> the dataclass of its settings, of which each version of the host has its own.
PARAMETERS = {
    "flux": ("comfy.ldm.flux.model", "FluxParams"),
    "flux2": ("comfy.ldm.flux.model", "FluxParams"),
    "chroma": ("comfy.ldm.chroma.model", "ChromaParams"),
    "hunyuan_video": ("comfy.ldm.hunyuan_video.model", "HunyuanVideoParams"),
}


def there(name: str) -> bool:
    """Whether the host has the architecture."""
    import comfy.model_base

    return hasattr(comfy.model_base, ARCHITECTURES[name][0])


def as_known(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A network's settings without those that this version of the host lacks."""
    if (parameters := PARAMETERS.get(settings.get("image_model", ""))) is None:
        return dict(settings)
    module, name = parameters
    known = getattr(importlib.import_module(module), name).__dataclass_fields__
    return {key: value for key, value in settings.items() if key in {*known, "image_model"}}


def build(name: str) -> Any:
    """A ModelPatcher of a shrunken model with random weights."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.ops
    import comfy.supported_models

    kind, settings = (ARCHITECTURES | OTHERS)[name]
    settings = as_known(settings)
    config = comfy.supported_models.Flux(dict(settings))
    config.unet_config = {**settings, "dtype": torch.float32}
    config.custom_operations, config.manual_cast_dtype = comfy.ops.disable_weight_init, None
    model = getattr(comfy.model_base, kind)(config, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
