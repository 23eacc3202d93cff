"""Text encoders other than CLIP: T5 and its kin, language models such as Gemma, Llama and Qwen, and BERT.

Programs number the text encoders of a pipeline, so that `lora_te2_` is Flux' T5 and SDXL's second CLIP, and ComfyUI
names them by the model, as in `text_encoders.qwen25_7b.transformer.`: which one it is, its modules' paths tell. No
pipeline has two of a kind but ACE-Step 1.5, whose second language model, `qwen3_2b`, keeps ComfyUI's names.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from .table import shape_of


@dataclass(frozen=True)
class Encoder:
    """paths: dotted, with {} for numbers. kohya, native: what its paths have before them in a file of that dialect."""

    paths: tuple[str, ...]
    kohya: str
    native: str


BLOCK, LAYER, BERT_LAYER, VISION = "encoder.block.{}.layer.{}", "layers.{}", "encoder.layer.{}", "visual.blocks.{}"
NORMS = ("input", "post_attention", "pre_feedforward", "post_feedforward")
ENCODERS = {
    "text_encoder_t5": Encoder(
        (
            *(f"{BLOCK}.SelfAttention.{leaf}" for leaf in ("q", "k", "v", "o", "relative_attention_bias")),
            *(f"{BLOCK}.DenseReluDense.{leaf}" for leaf in ("wi", "wi_{}", "wo")),
            *(f"{BLOCK}.layer_norm", "encoder.final_layer_norm", "shared"),
        ),
        "lora_te3_",
        "text_encoders.t5xxl.transformer.",
    ),
    "text_encoder_llm": Encoder(
        (
            *(f"{LAYER}.self_attn.{leaf}" for leaf in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")),
            *(f"{block}.mlp.{leaf}_proj" for block in (LAYER, VISION) for leaf in ("gate", "up", "down")),
            *(f"{LAYER}.{place}_layernorm" for place in NORMS),
            *(f"{VISION}.{leaf}" for leaf in ("attn.qkv", "attn.proj", "norm1", "norm2")),
            *("visual.patch_embed.proj", "visual.merger.ln_q", "visual.merger.mlp.{}", "embed_tokens", "norm"),
        ),
        "lora_te_",
        "text_encoders.transformer.model.",
    ),
    "text_encoder_bert": Encoder(
        (
            *(f"{BERT_LAYER}.attention.self.{leaf}" for leaf in ("query", "key", "value")),
            *(f"{BERT_LAYER}.{leaf}.dense" for leaf in ("attention.output", "intermediate", "output")),
            *(f"{BERT_LAYER}.{leaf}.LayerNorm" for leaf in ("attention.output", "output")),
            *(f"embeddings.{leaf}_embeddings" for leaf in ("word", "position", "token_type")),
            "embeddings.LayerNorm",
        ),
        "lora_te1_",
        "text_encoders.hydit_clip.transformer.bert.",
    ),
}
_PATHS = {shape_of(path)[0]: (name, path) for name, encoder in ENCODERS.items() for path in encoder.paths}
_WRAPPER = re.compile(r"(?:bert[._])?(?:model[._])?(?:language_model[._])?(?:model[._])?")


def encoder_path(path: str) -> tuple[str, str] | None:
    """(component, dotted path) of a text encoder's module, its path dotted or flattened; None of one not known."""
    shape, numbers = shape_of(_WRAPPER.sub("", path, count=1))
    component, pattern = _PATHS.get(shape, ("", ""))
    return (component, pattern.format(*numbers)) if component else None


def encoder_name(name: str, dialect: str, components: Collection[str]) -> str | None:
    """What a module is called in a dialect, in a file that has modules of `components`; None for no encoder's of this
    file.

    peft numbers a T5 after the CLIPs that are there, as in diffusers' Flux and Stable Diffusion 3.
    """
    component, _, path = name.partition(".")
    encoder = ENCODERS.get(component)
    if encoder is None:
        return None
    if dialect == "peft":
        clips = sum(clip in components for clip in ("text_encoder", "text_encoder_2"))
        numbered = component == "text_encoder_t5" and clips
        return f"text_encoder_{clips + 1}.{path}" if numbered else f"text_encoder.{path}"
    if dialect == "kohya":
        return encoder.kohya + path.replace(".", "_")
    return encoder.native.removesuffix("model." if path.startswith("visual.") else "") + path
