"""diffusers' transformers of a block or two and a few channels, in the pipelines that load and save their LoRAs."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
from torch import nn

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
ONE = {**HEADS, "num_layers": 1, "in_channels": 4}
WAN = {**ONE, "text_dim": 12, "freq_dim": 8, "ffn_dim": 20}
STREAMS = {**ONE, "num_single_layers": 1, "joint_attention_dim": 12}
# Family -> (pipeline, transformer, its settings)
NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Flux": ("FluxPipeline", "FluxTransformer2DModel", {
        **STREAMS, "pooled_projection_dim": 10, "guidance_embeds": True, "axes_dims_rope": (2, 2, 4),
    }),
    "Flux.2": ("Flux2Pipeline", "Flux2Transformer2DModel", {
        **STREAMS, "timestep_guidance_channels": 8, "axes_dims_rope": (2, 2, 2, 2),
    }),
    "Chroma": ("ChromaPipeline", "ChromaTransformer2DModel", {
        **STREAMS, "axes_dims_rope": (2, 2, 4), "approximator_num_channels": 8, "approximator_hidden_dim": 20,
        "approximator_layers": 2,
    }),
    "HunyuanVideo": ("HunyuanVideoPipeline", "HunyuanVideoTransformer3DModel", {
        **ONE, "num_single_layers": 1, "num_refiner_layers": 1, "text_embed_dim": 12, "pooled_projection_dim": 10,
        "rope_axes_dim": (2, 2, 4),
    }),
    "HunyuanVideo 1.5": ("HunyuanVideo15Pipeline", "HunyuanVideo15Transformer3DModel", {
        **ONE, "num_refiner_layers": 1, "text_embed_dim": 12, "text_embed_2_dim": 10, "image_embed_dim": 6,
        "rope_axes_dim": (2, 2, 4), "patch_size": 2,
    }),
    "HunyuanImage": ("HunyuanImagePipeline", "HunyuanImageTransformer2DModel", {
        **ONE, "num_single_layers": 1, "num_refiner_layers": 1, "text_embed_dim": 12, "text_embed_2_dim": 10,
        "guidance_embeds": True, "use_meanflow": True, "rope_axes_dim": (4, 4),
    }),
    "Stable Diffusion 3": ("StableDiffusion3Pipeline", "SD3Transformer2DModel", {
        **ONE, "num_layers": 2, "joint_attention_dim": 12, "caption_projection_dim": 16, "pooled_projection_dim": 10,
        "sample_size": 4, "pos_embed_max_size": 4, "dual_attention_layers": (0,), "qk_norm": "rms_norm",
    }),
    "AuraFlow": ("AuraFlowPipeline", "AuraFlowTransformer2DModel", {
        **HEADS, "num_mmdit_layers": 1, "num_single_dit_layers": 1, "joint_attention_dim": 12, "sample_size": 4,
        "caption_projection_dim": 16, "pos_embed_max_size": 16,
    }),
    "Qwen-Image": ("QwenImagePipeline", "QwenImageTransformer2DModel", {
        **ONE, "joint_attention_dim": 12, "axes_dims_rope": (2, 2, 4),
    }),
    "LTX-Video": ("LTXPipeline", "LTXVideoTransformer3DModel", {
        **ONE, "cross_attention_dim": 16, "caption_channels": 12,
    }),
    "LTX-2": ("LTX2Pipeline", "LTX2VideoTransformer3DModel", {
        **ONE, "cross_attention_dim": 16, "caption_channels": 12, "audio_in_channels": 4, "cross_attn_mod": True,
        "audio_attention_head_dim": 4, "audio_cross_attention_dim": 8, "gated_attn": True, "audio_gated_attn": True,
        "audio_cross_attn_mod": True, "audio_num_attention_heads": 2,
    }),
    "Kandinsky 5": ("Kandinsky5T2VPipeline", "Kandinsky5Transformer3DModel", {
        "in_text_dim": 12, "in_text_dim2": 10, "time_dim": 8, "model_dim": 16, "ff_dim": 20, "num_text_blocks": 1,
        "num_visual_blocks": 1, "axes_dims": (2, 2, 4),
    }),
    "ACE-Step 1.5": ("AceStepPipeline", "AceStepTransformer1DModel", {
        "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
        "num_key_value_heads": 1, "in_channels": 12, "audio_acoustic_hidden_dim": 4,
    }),
    "ERNIE-Image": ("ErnieImagePipeline", "ErnieImageTransformer2DModel", {
        "hidden_size": 16, "num_attention_heads": 2, "num_layers": 1, "ffn_hidden_size": 20, "in_channels": 4,
        "out_channels": 4, "text_in_dim": 12, "rope_axes_dim": (2, 2, 4),
    }),
    "HiDream": ("HiDreamImagePipeline", "HiDreamImageTransformer2DModel", {
        **ONE, "num_single_layers": 1, "patch_size": 2, "caption_channels": [12, 12], "text_emb_dim": 10,
        "num_routed_experts": 2, "num_activated_experts": 1, "axes_dims_rope": (2, 2, 4), "llama_layers": [0, 0],
    }),
    "Wan": ("WanImageToVideoPipeline", "WanTransformer3DModel", {**WAN, "image_dim": 10, "added_kv_proj_dim": 16}),
    "Wan VACE": ("WanVACEPipeline", "WanVACETransformer3DModel", {**WAN, "vace_layers": [0], "vace_in_channels": 4}),
    "Cosmos Predict2": ("Cosmos2_5_PredictBasePipeline", "CosmosTransformer3DModel", {
        **ONE, "attention_head_dim": 16, "text_embed_dim": 12, "adaln_lora_dim": 6, "max_size": (4, 4, 4),
        "extra_pos_embed_type": None,
    }),
    "Krea 2": ("Krea2Pipeline", "Krea2Transformer2DModel", {
        **ONE, "num_key_value_heads": 1, "intermediate_size": 20, "timestep_embed_dim": 8, "text_hidden_dim": 12,
        "num_text_layers": 2, "text_num_attention_heads": 2, "text_num_key_value_heads": 2,
        "text_intermediate_size": 20, "num_refiner_text_blocks": 1, "num_layerwise_text_blocks": 1,
        "axes_dims_rope": (2, 2, 4),
    }),
    "Lumina 2": ("Lumina2Pipeline", "Lumina2Transformer2DModel", {
        "in_channels": 4, "hidden_size": 24, "num_layers": 1, "num_refiner_layers": 1, "num_attention_heads": 3,
        "num_kv_heads": 1, "multiple_of": 8, "cap_feat_dim": 12, "axes_dim_rope": (4, 2, 2), "axes_lens": (8, 8, 8),
    }),
    "Z-Image": ("ZImagePipeline", "ZImageTransformer2DModel", {
        "in_channels": 4, "dim": 16, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
        "cap_feat_dim": 12, "axes_dims": [2, 2, 4], "axes_lens": [8, 8, 8],
    }),
}  # fmt: skip
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def build(network: str, **settings: Any) -> nn.Module:
    _, kind, config = NETWORKS[network]
    return getattr(diffusers, kind)(**config, **settings)


def pipeline(network: str, transformer: nn.Module) -> Any:
    """diffusers' pipeline with nothing in it but the transformer."""
    kind = getattr(diffusers, NETWORKS[network][0])
    pipe = object.__new__(kind)
    pipe.register_modules(**dict.fromkeys(list(inspect.signature(kind.__init__).parameters)[1:]))
    pipe.register_modules(transformer=transformer)
    return pipe


def layers(network: nn.Module) -> dict[str, nn.Module]:
    """Path -> every layer that a LoRA is made for."""
    return {name: module for name, module in network.named_modules() if isinstance(module, LAYERS)}
