"""diffusers' transformers in their real sizes, without storage: what a file's names and rows are checked against."""

from __future__ import annotations

import diffusers
import torch
from tiny_transformers import layers
from torch import nn

HIDREAM = {
    "num_layers": 2, "num_single_layers": 2, "in_channels": 16, "patch_size": 2, "attention_head_dim": 128,
    "num_attention_heads": 20, "num_routed_experts": 4, "num_activated_experts": 2, "text_emb_dim": 2048,
    "caption_channels": [4096, 4096], "llama_layers": list(range(32)),
}  # fmt: skip
NETWORKS = {
    "Flux": ("FluxTransformer2DModel", {}),
    "Flux.2": ("Flux2Transformer2DModel", {}),
    "Chroma": ("ChromaTransformer2DModel", {}),
    "HunyuanVideo": ("HunyuanVideoTransformer3DModel", {}),
    "Z-Image": ("ZImageTransformer2DModel", {}),
    "Stable Diffusion 3": (
        "SD3Transformer2DModel",
        {"dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"},
    ),
    "AuraFlow": ("AuraFlowTransformer2DModel", {}),
    "PixArt": ("PixArtTransformer2DModel", {}),
    "Qwen-Image": ("QwenImageTransformer2DModel", {}),
    "LTX-Video": ("LTXVideoTransformer3DModel", {}),
    "HiDream": ("HiDreamImageTransformer2DModel", HIDREAM),
    "Wan": ("WanTransformer3DModel", {"image_dim": 1280, "added_kv_proj_dim": 5120}),
    "Cosmos Predict2": ("CosmosTransformer3DModel", {}),
    "Krea 2": ("Krea2Transformer2DModel", {}),
    "Lumina 2": ("Lumina2Transformer2DModel", {}),
    "LTX-2": ("LTX2VideoTransformer3DModel", {"gated_attn": True, "audio_gated_attn": True, "num_layers": 2}),
    "Kandinsky 5": ("Kandinsky5Transformer3DModel", {"num_visual_blocks": 2}),
    "ACE-Step 1.5": ("AceStepTransformer1DModel", {}),
    "ERNIE-Image": ("ErnieImageTransformer2DModel", {}),
    "HunyuanVideo 1.5": ("HunyuanVideo15Transformer3DModel", {}),
    "HunyuanImage": (
        "HunyuanImageTransformer2DModel",
        {"text_embed_2_dim": 1472, "use_meanflow": True, "guidance_embeds": True},
    ),
}


def full(network: str) -> dict[str, nn.Module]:
    """Path -> every layer that a LoRA is made for."""
    kind, config = NETWORKS[network]
    with torch.device("meta"):
        return layers(getattr(diffusers, kind)(**config))
