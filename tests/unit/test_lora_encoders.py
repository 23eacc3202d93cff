"""Text encoders other than CLIP, of transformers, under the names that trainers, diffusers and ComfyUI give them."""

import pytest
import torch
import transformers
from torch import nn

from lcm_core.lora import LoRAVector
from lcm_core.lora.names import flat, read_name
from lcm_core.lora.names.writing import write_names

SIZES = {
    "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8,
    "num_key_value_heads": 1, "vocab_size": 10,
}  # fmt: skip
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 2, "num_heads": 2, "vocab_size": 10}
GATED = {**T5, "feed_forward_proj": "gated-gelu"}
QWEN_VL = {"text_config": {**SIZES, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}, "vision_config": {
    "depth": 1, "hidden_size": 16, "intermediate_size": 20, "num_heads": 2, "out_hidden_size": 16,
}}  # fmt: skip
# Class of transformers -> its settings, the component, and the prefixes of files and of ComfyUI's key maps.
SPELLINGS = {
    "T5EncoderModel": (GATED, "t5", [
        "lora_te1_", "lora_te2_", "lora_te3_", "text_encoder_2.", "text_encoder_3.base_model.model.", "text_encoder.",
        "text_encoders.t5xxl.transformer.", "text_encoders.t5base.transformer.", "text_encoders.transformer.",
    ]),
    "UMT5EncoderModel": (GATED, "t5", ["text_encoders.umt5xxl.transformer.", "lora_te_"]),
    "Gemma2Model": (SIZES, "llm", ["lora_te_", "text_encoders.gemma2_2b.transformer.model.", "text_encoder."]),
    "LlamaModel": (SIZES, "llm", [
        "lora_te1_", "text_encoders.llama.transformer.model.", "text_encoder.",
        "text_encoders.transformer.model.",
    ]),
    "Qwen3Model": (SIZES, "llm", ["lora_te_", "text_encoders.qwen3_06b.transformer.model.", "lora_te_model_"]),
    "Qwen2_5_VLModel": (QWEN_VL, "llm", ["text_encoder.model.", "text_encoders.qwen25_7b.transformer.", "lora_te_"]),
    "BertModel": ({**SIZES, "max_position_embeddings": 8}, "bert", [
        "lora_te1_", "text_encoders.hydit_clip.transformer.bert.",
    ]),
}  # fmt: skip


def layers(kind):
    config = getattr(transformers, kind).config_class(**SPELLINGS[kind][0])
    with torch.device("meta"):
        network = getattr(transformers, kind)(config)
    return [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear) and "pooler" not in name]


@pytest.mark.parametrize("kind", SPELLINGS)
def test_every_spelling_of_a_layer_is_one_name(kind):
    _, component, prefixes = SPELLINGS[kind]
    found = layers(kind)
    assert len(found) > 10
    paths = [name.removeprefix("language_model.") for name in found]
    names = [f"text_encoder_{component}.{path}" for path in paths]
    for prefix in prefixes:
        spelled = found if prefix == "text_encoder.model." else paths
        written = [prefix + (path if prefix.endswith(".") else flat(path)) for path in spelled]
        assert [read_name(name).name for name in written] == names
    for dialect in ("native", "kohya", "peft"):
        assert [read_name(place.name).name for place in write_names(names, dialect)] == names


CLIPS = ("text_encoder", "text_encoder_2")


@pytest.mark.parametrize(
    ("with_clips", "peft"), [((), "text_encoder."), (CLIPS[:1], "text_encoder_2."), (CLIPS, "text_encoder_3.")]
)
def test_a_t5_is_called_as_its_readers_call_it(with_clips, peft):
    """`lora_te3_` in ComfyUI's maps of Flux and Stable Diffusion 3, as sd-scripts writes it; diffusers counts CLIPs."""
    path = "encoder.block.3.layer.0.SelfAttention.q"
    name = f"text_encoder_t5.{path}"
    clips = [f"{clip}.text_model.encoder.layers.0.mlp.fc1" for clip in with_clips]
    spelled = {dialect: write_names([name], dialect, among=clips)[0].name for dialect in ("kohya", "peft", "native")}
    assert spelled == {
        "kohya": f"lora_te3_{flat(path)}",
        "peft": peft + path,
        "native": f"text_encoders.t5xxl.transformer.{path}",
    }


def test_clips_keep_their_names():
    leaf = "text_model.encoder.layers.0.self_attn.q_proj"
    for name, canonical in {
        f"lora_te1_{flat(leaf)}": "text_encoder", f"lora_te2_{flat(leaf)}": "text_encoder_2",
        f"text_encoder_2.{leaf}": "text_encoder_2", f"text_encoders.clip_g.transformer.{leaf}": "text_encoder_2",
    }.items():  # fmt: skip
        assert read_name(name).name == f"{canonical}.{leaf}"
    assert read_name("lora_te2_text_projection").name == "text_encoder_2.text_projection"


def test_loras_of_one_t5_in_two_trainers_spellings_add_up():
    torch.manual_seed(0)
    down, up = torch.randn(2, 8), torch.randn(8, 2)
    leaf = "encoder.block.1.layer.1.DenseReluDense.wi_0"
    one = {f"lora_te3_{flat(leaf)}.lora_down.weight": down, f"lora_te3_{flat(leaf)}.lora_up.weight": up}
    other = {f"text_encoders.t5xxl.transformer.{leaf}.lora_A.weight": down,
             f"text_encoders.t5xxl.transformer.{leaf}.lora_B.weight": up}  # fmt: skip
    total = LoRAVector.from_state_dict(one) + LoRAVector.from_state_dict(other)
    torch.testing.assert_close(total.delta(f"text_encoder_t5.{leaf}"), 2 * up @ down)
