"""The models that LCM Sampler is held against core's samplers on: the host's classes, shrunken, with random weights.

A new architecture is one entry of ROWS; sampler_table.py runs it and test_sampler_table.py judges it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.host.shrunken import ARCHITECTURES, OTHERS, as_known

CELLS = ("text", "image to image", "mask", "batch", "seeds", "split")
SEED = 5
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Accelerated:
    """Files of acceleration LoRAs, one an expert, each of a model's `layer`; and what core is told by hand: the
    shift that their cards give, by one of its nodes, and the steps."""

    files: tuple[str, ...]
    layer: str
    node: str
    shift: float
    steps: int


@dataclass(frozen=True)
class Stop:
    """An error that a cell ends with: a part of what it says, and the reason."""

    said: str
    reason: str


@dataclass(frozen=True)
class Row:
    """An architecture: a class of comfy.supported_models, its network's settings, and what it is sampled from.

    shapes: of an image's latent, without its batch; several of a nested one. words: the width of a text's embeddings.
    pooled: that of the pooled one. conditions: what else a conditioning has, a tensor or the shape of a random one.
    weights: tensors of a checkpoint by which the host tells how the model samples. experts: how many models share the
    steps. kept: how many blocks are left of those that no setting makes fewer. mixes: why a batch's images are not
    those alone, if so. core_as_v: whether core's samplers run on it as a v-prediction. refuses: what LCM Sampler stops
    at, by cell. fails: what core's samplers stop at too. tolerance: of a cell, more where σ begins in the thousands and
    float32 rounds it.
    """

    config: str
    network: Mapping[str, Any]
    shapes: tuple[Shape, ...]
    words: int = 32
    pooled: int = 64
    conditions: Mapping[str, Tensor | Shape] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    experts: int = 1
    kept: Mapping[str, int] = field(default_factory=dict)
    accelerated: Accelerated | None = None
    mixes: str = ""
    core_as_v: bool = False
    refuses: Mapping[str, Stop] = field(default_factory=dict)
    fails: Mapping[str, Stop] = field(default_factory=dict)
    tolerance: float = 2e-5


def shrunken(name: str, **settings: Any) -> dict[str, Any]:
    """The settings of a network of shrunken.py with some of them changed."""
    return (ARCHITECTURES | OTHERS)[name][1] | settings


UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "num_res_blocks": [1],
    "channel_mult": [1], "transformer_depth": [1], "transformer_depth_middle": 1, "transformer_depth_output": [1, 1],
    "use_spatial_transformer": True, "context_dim": 32, "legacy": False,
}  # fmt: skip
HEADS = {"use_linear_in_transformer": True, "num_head_channels": 64}
SDXL = UNET | HEADS | {"num_classes": "sequential", "adm_in_channels": 2816}
SVD = SDXL | {
    "in_channels": 8, "adm_in_channels": 768, "use_temporal_attention": True,
    "use_temporal_resblock": True, "extra_ff_mix_layer": True, "video_kernel_size": [3, 1, 1],
    "merge_strategy": "learned_with_images",
}  # fmt: skip
CASCADE = {"c_cond": 32, "c_hidden": [32, 32], "nhead": [2, 2], "blocks": [[1, 1], [1, 1]]}
COSMOS_1 = {
    "image_model": "cosmos", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
    "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 64, "num_blocks": 2, "num_heads": 2,
    "crossattn_emb_channels": 32, "block_config": "FA-CA-MLP", "concat_padding_mask": True, "pos_emb_cls": "rope3d",
    "pos_emb_learnable": False, "use_adaln_lora": True, "adaln_lora_dim": 16, "block_x_format": "THWBD",
    "affline_emb_norm": True, "extra_per_block_abs_pos_emb": True, "extra_per_block_abs_pos_emb_type": "learnable",
}  # fmt: skip
MARK = {"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([-1.0, 1.0])}  # std > 0.09 means v
ATTENTION = {"attention_mask": torch.ones(1, 4, dtype=torch.long)}
PICTURE, VIDEO = ((16, 8, 8),), ((16, 2, 8, 8),)
WAN = shrunken("Wan 2.1 T2V")
FRAMES = "a batch is the frames of one video, which attend to one another"
MIXED = "its network mixes the batch, in core's samplers too"
EVERY_CHANNEL = "the host hands the network a mask of every channel, and it takes one of a single channel"
ONE_STEP = Stop("samples as IMG_TO_IMG", "it makes a picture of a picture in one step, without noise")
ONE_AT_A_TIME = Stop("supports batch size 1", "the host's network takes one picture with its sound at a time")
ROWS = {
    "Stable Diffusion 1.5": Row("SD15", UNET, ((4, 8, 8),)),
    "Stable Diffusion 2": Row("SD20", UNET | HEADS, ((4, 8, 8),)),
    "Stable Diffusion 2, v-prediction": Row("SD20", UNET | HEADS, ((4, 8, 8),), weights=MARK),
    "SDXL": Row("SDXL", SDXL, ((4, 8, 8),), pooled=1280),
    "SDXL, v-prediction, zero terminal SNR": Row(
        "SDXL", SDXL, ((4, 8, 8),), pooled=1280, weights={"v_pred": torch.ones(1), "ztsnr": torch.ones(1)},
        tolerance=2e-4,
    ),
    "Playground 2.5": Row(
        "SDXL", SDXL, ((4, 8, 8),), pooled=1280, weights={"edm_mean": torch.ones(1), "edm_std": torch.ones(1)}
    ),
    "SSD-1B": Row("SSD1B", SDXL | {"transformer_depth_middle": -1}, ((4, 8, 8),), pooled=1280),
    "Stable Video Diffusion": Row("SVD_img2vid", SVD, ((4, 8, 8),), mixes=FRAMES),
    "Stable Cascade, stage C": Row(
        "Stable_Cascade_C",
        CASCADE | {"stable_cascade_stage": "c", "c_clip_text": 32, "c_clip_text_pooled": 64},
        PICTURE,
    ),
    "Stable Diffusion 3": Row("SD3", shrunken("Stable Diffusion 3"), PICTURE, words=96),
    "Stable Audio": Row(
        "StableAudio",
        {"audio_model": "dit1.0", "embed_dim": 768, "cond_token_dim": 768, "depth": 1, "num_heads": 24},
        ((64, 16),),
        words=768,
    ),
    "AuraFlow": Row("AuraFlow", shrunken("AuraFlow"), ((4, 8, 8),), words=48),
    "PixArt Σ": Row("PixArtSigma", shrunken("PixArt"), ((4, 40, 40),), words=48),
    "Flux.1": Row("Flux", shrunken("Flux.1"), PICTURE, words=64, pooled=48),
    "Flux.2": Row("Flux2", shrunken("Flux.2", in_channels=128, out_channels=128), ((128, 4, 4),), words=64),
    "Chroma": Row("Chroma", shrunken("Chroma", in_dim=64, in_channels=64, out_channels=64), PICTURE, words=64),
    "Lumina 2": Row("Lumina2", shrunken("Lumina 2", n_layers=1), PICTURE, words=48),
    "Z-Image": Row("ZImage", shrunken("Z-Image", n_layers=1, dim=256, n_heads=2, n_kv_heads=2), PICTURE, words=48),
    "Qwen-Image": Row("QwenImage", shrunken("Qwen-Image"), ((16, 1, 8, 8),), words=48),
    "Qwen-Image, Lightning on auto": Row(
        "QwenImage", shrunken("Qwen-Image"), ((16, 1, 8, 8),), words=48, accelerated=Accelerated(
            ("Qwen-Image-Lightning-8steps-V1.1",), "transformer_blocks.0.attn.to_q", "ModelSamplingAuraFlow",
            shift=3.0, steps=8,
        ),
    ),
    "OmniGen2": Row("Omnigen2", shrunken("OmniGen2"), PICTURE, words=48, conditions=ATTENTION),
    "HiDream": Row("HiDream", shrunken("HiDream"), PICTURE, words=48, pooled=48,
                   conditions={"conditioning_llama3": (1, 2, 4, 48)}),
    "HunyuanImage 2.1": Row("HunyuanImage21", shrunken("HunyuanImage", in_channels=64, out_channels=64),
                            ((64, 8, 8),), words=64),
    "HunyuanVideo": Row("HunyuanVideo", shrunken("HunyuanVideo"), VIDEO, words=64, pooled=48),
    "HunyuanVideo 1.5": Row("HunyuanVideo15", shrunken("HunyuanVideo 1.5", in_channels=65, out_channels=32),
                            ((32, 2, 8, 8),), words=64, fails={"mask": Stop("channels, but got", EVERY_CHANNEL)}),
    "Wan 2.1 T2V": Row("WAN21_T2V", WAN, VIDEO, words=48),
    "Wan 2.1 I2V": Row("WAN21_I2V", shrunken("Wan 2.1 I2V"), VIDEO, words=48),
    "Wan 2.2, 5B": Row("WAN22_T2V", WAN | {"in_dim": 48, "out_dim": 48}, ((48, 2, 8, 8),), words=48),
    "Wan 2.2, two experts": Row("WAN21_T2V", WAN, VIDEO, words=48, experts=2),
    "Wan 2.2, two experts, Lightning on auto": Row(
        "WAN21_T2V", WAN, VIDEO, words=48, experts=2, accelerated=Accelerated((
            "Wan2.2-Lightning_T2V-A14B-4steps-lora_HIGH_fp16", "Wan2.2-Lightning_T2V-A14B-4steps-lora_LOW_fp16",
        ), "blocks.0.self_attn.q", "ModelSamplingSD3", shift=5.0, steps=4),
    ),
    "LTX-Video": Row("LTXV", shrunken("LTX-Video"), ((128, 2, 4, 4),), words=48, conditions=ATTENTION),
    "LTX-2, picture and sound": Row("LTXAV", shrunken("LTX-2"), ((128, 2, 4, 4), (8, 8, 16)), words=48),
    "Cosmos": Row("CosmosT2V", COSMOS_1, VIDEO),
    "Cosmos Predict2": Row("CosmosT2IPredict2", shrunken("Cosmos Predict2"), VIDEO, words=48),
    "Anima": Row("Anima", shrunken("Anima"), VIDEO, words=48),
    "ACE-Step": Row(
        "ACEStep", shrunken("ACE-Step", speaker_embedding_dim=512, lyric_hidden_size=1024), ((8, 16, 16),), words=48,
        conditions={"conditioning_lyrics": torch.arange(4)[None]}, kept={"lyric_encoder.encoders": 1},
    ),
    "ACE-Step 1.5": Row(
        "ACEStep15", shrunken("ACE-Step 1.5", in_channels=192, timbre_hidden_dim=64, audio_acoustic_hidden_dim=64),
        ((64, 16),), words=48, conditions={"conditioning_lyrics": (1, 4, 48)}, mixes=MIXED,
    ),
    "Kandinsky 5": Row("Kandinsky5", shrunken("Kandinsky 5"), VIDEO, words=48, pooled=32,
                       fails={"mask": Stop("cannot be multiplied", EVERY_CHANNEL)}),
    "ERNIE-Image": Row("ErnieImage", shrunken("ERNIE-Image", in_channels=128, out_channels=128), ((128, 8, 8),),
                       words=48),
    "Krea 2": Row("Krea2", shrunken("Krea 2"), ((16, 1, 8, 8),), words=256),
    "CogVideoX": Row("CogVideoX_T2V", {
        "image_model": "cogvideox", "num_attention_heads": 2, "time_embed_dim": 32, "text_embed_dim": 32,
        "num_layers": 2, "sample_width": 8, "sample_height": 8, "sample_frames": 5, "max_text_seq_length": 4,
        "use_rotary_positional_embeddings": True,
    }, VIDEO, core_as_v=True, tolerance=2e-4),
    "MiniMax-H3, picture and sound": Row("MiniMaxH3", {
        "image_model": "minimax_h3", "hidden_size": 96, "num_layers": 1, "token_refiner_num_layers": 1,
        "num_attention_heads": 1, "attention_head_dim": 96, "ffn_hidden_size": 128, "text_dim": 32,
        "timestep_input_dim": 32, "time_embed_hidden_size": 32, "time_embed_dim": 32,
    }, ((24, 2, 8, 8), (32, 2, 8)), fails=dict.fromkeys(("batch", "seeds"), ONE_AT_A_TIME)),
    "Lotus, depth in one step": Row(
        "LotusD", UNET | HEADS | {"adm_in_channels": 4, "num_classes": "sequential"}, ((4, 8, 8),), pooled=4,
        refuses=dict.fromkeys(CELLS, ONE_STEP),
    ),
}  # fmt: skip


def there(row: Row) -> bool:
    """Whether the host has the architecture."""
    return hasattr(importlib.import_module("comfy.supported_models"), row.config)


def build(row: Row, seed: int = SEED) -> Any:
    """A MODEL of a row, its weights random, of variance 1/fan-in."""
    supported, patcher = (importlib.import_module(f"comfy.{name}") for name in ("supported_models", "model_patcher"))
    config = getattr(supported, row.config)(as_known(row.network))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(dict(row.weights) | seconds())
    for blocks, count in row.kept.items():
        del model.diffusion_model.get_submodule(blocks)[count:]
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.state_dict().items():
        if name.startswith("model_sampling.") or not weight.is_floating_point():
            continue
        scale = max(1, math.prod(weight.shape[1:])) ** -0.5 if weight.ndim > 1 else 0.02
        noise = scale * torch.randn(weight.shape, generator=generator)
        weight.copy_(noise + (1.0 if weight.ndim == 1 and name.endswith("weight") else 0.0))
    cpu = torch.device("cpu")
    return patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def seconds() -> dict[str, Tensor]:
    """A checkpoint's tensors of Stable Audio's embedders of seconds."""
    embedder = importlib.import_module("comfy.ldm.audio.embedders").NumberConditioner(768, min_val=0, max_val=512)
    return {
        f"conditioner.conditioners.seconds_{end}.{name}": value
        for end in ("start", "total") for name, value in embedder.state_dict().items()
    }  # fmt: skip


def write_lora(folder: Path, name: str, layer: str, model: Any) -> str:
    """The name of a LoRA file of one layer of a MODEL, written where the host finds it."""
    paths = importlib.import_module("folder_paths")
    height, width = model.model.diffusion_model.get_submodule(layer).weight.shape
    generator = torch.Generator().manual_seed(SEED)
    factors = {
        "lora_down": torch.randn(2, width, generator=generator),
        "lora_up": torch.randn(height, 2, generator=generator),
    }
    save_file(
        {f"diffusion_model.{layer}.{role}.weight": 0.2 * factor for role, factor in factors.items()},
        folder / f"{name}.safetensors",
    )
    paths.add_model_folder_path("loras", str(folder))
    paths.filename_list_cache.clear()
    return f"{name}.safetensors"
