"""Qwen-Image, LTX-Video, HiDream and ACE-Step: networks that diffusers and the original spell alike, or nearly."""

from .family import ADDED as ADDED_INPUTS
from .family import Family, Paths, same

BLOCK = "transformer_blocks.{}"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
ADDED = (*ADDED_INPUTS, "to_add_out")
QWEN_NATIVE: dict[str, Paths] = {
    **same(*(f"{BLOCK}.attn.{leaf}" for leaf in ATTENTION + ADDED)),
    **same(*(f"{BLOCK}.{s}_mlp.net.{leaf}" for s in ("img", "txt") for leaf in ("0.proj", "2"))),
    **same(f"{BLOCK}.img_mod.1", f"{BLOCK}.txt_mod.1", "proj_out"),
    **same("time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2"),
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "norm_out.linear": "~final_layer.adaLN_modulation.1",
}
EMBEDDER = "adaln_single.emb.timestep_embedder"
LTX_EMBEDDER: dict = {
    f"{EMBEDDER}.linear_1": "time_text_embed.timestep_embedder.linear_1",
    f"{EMBEDDER}.linear_2": "time_text_embed.timestep_embedder.linear_2",
}
LTX_EMBEDDER_DIFFUSERS: dict = {
    "time_embed.emb.timestep_embedder.linear_1": "time_text_embed.timestep_embedder.linear_1",
    "time_embed.emb.timestep_embedder.linear_2": "time_text_embed.timestep_embedder.linear_2",
}
LTX = Family(
    "LTX-Video",
    native={
        **same(*(f"{BLOCK}.{attn}.{leaf}" for attn in ("attn1", "attn2") for leaf in ATTENTION)),
        **same(f"{BLOCK}.ff.net.0.proj", f"{BLOCK}.ff.net.2", "adaln_single.linear", "proj_out"),
        **same("caption_projection.linear_1", "caption_projection.linear_2"),
        **LTX_EMBEDDER,
        "patchify_proj": "proj_in",
    },
    diffusers={**LTX_EMBEDDER_DIFFUSERS, "time_embed.linear": "adaln_single.linear"},
)
HIDREAM_DOUBLE, HIDREAM_SINGLE = "double_stream_blocks.{}.block", "single_stream_blocks.{}.block"
MIXTURE = (
    *(f"ff_i.shared_experts.w{i}" for i in (1, 2, 3)),
    *(f"ff_i.experts.{{}}.w{i}" for i in (1, 2, 3)),
    "ff_i.gate",
)
HIDREAM_NATIVE: dict[str, Paths] = {
    **same(*(f"{b}.attn1.{leaf}" for b in (HIDREAM_DOUBLE, HIDREAM_SINGLE) for leaf in (*ATTENTION[:3], "to_out"))),
    **same(*(f"{HIDREAM_DOUBLE}.attn1.{leaf}_t" for leaf in (*ATTENTION[:3], "to_out"))),
    **same(*(f"{b}.{leaf}" for b in (HIDREAM_DOUBLE, HIDREAM_SINGLE) for leaf in MIXTURE)),
    **same(*(f"{HIDREAM_DOUBLE}.ff_t.w{i}" for i in (1, 2, 3))),
    **same(*(f"{b}.adaLN_modulation.1" for b in (HIDREAM_DOUBLE, HIDREAM_SINGLE))),
    **same("final_layer.adaLN_modulation.1", "caption_projection.{}.linear"),
    "t_embedder.timestep_embedder.linear_1": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.timestep_embedder.linear_2": "time_text_embed.timestep_embedder.linear_2",
    "p_embedder.pooled_embedder.linear_1": "time_text_embed.text_embedder.linear_1",
    "p_embedder.pooled_embedder.linear_2": "time_text_embed.text_embedder.linear_2",
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.linear": "proj_out",
}
ACE_NATIVE: dict[str, Paths] = {
    **same(*(f"{BLOCK}.attn.{leaf}" for leaf in ATTENTION)),
    **same(*(f"{BLOCK}.cross_attn.{leaf}" for leaf in ATTENTION + ADDED)),
    **same(*(f"{BLOCK}.ff.{leaf}.conv" for leaf in ("inverted_conv", "depth_conv", "point_conv"))),
    **same(*(f"lyric_encoder.encoders.{{}}.self_attn.linear_{leaf}" for leaf in ("q", "k", "v", "out", "pos"))),
    **same(*(f"lyric_encoder.encoders.{{}}.feed_forward.w_{i}" for i in (1, 2))),
    **same("lyric_encoder.embed.out.0", "speaker_embedder", "genre_embedder", "lyric_embs", "lyric_proj"),
    **same("projectors.{}.{}", "proj_in.early_conv_layers.{}"),
    "timestep_embedder.linear_1": "time_text_embed.timestep_embedder.linear_1",
    "timestep_embedder.linear_2": "time_text_embed.timestep_embedder.linear_2",
    "t_block.1": "adaln_single.linear",
    "final_layer.linear": "proj_out",
}


def renamed(native: dict[str, Paths]) -> dict[str, Paths]:
    """The paths of a network that diffusers spells as the original does, where the canonical path is another."""
    return {path: canonical for path, canonical in native.items() if path != canonical}


QWEN = Family("Qwen-Image", native=QWEN_NATIVE, diffusers=renamed(QWEN_NATIVE))
HIDREAM = Family("HiDream", native=HIDREAM_NATIVE, diffusers=renamed(HIDREAM_NATIVE))
ACE = Family("ACE-Step", native=ACE_NATIVE, diffusers=renamed(ACE_NATIVE))
FAMILIES = (QWEN, LTX, HIDREAM, ACE)
