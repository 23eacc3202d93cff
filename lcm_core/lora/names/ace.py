"""ACE-Step 1.0, and 1.5: its decoder, and the encoders of its conditions, which ComfyUI keeps in one network."""

from .family import ADDED, ATTENTION, Family, Paths, renamed, same, timestep

BLOCK = "transformer_blocks.{}"
NATIVE: dict[str, Paths] = {
    **same(*(f"{BLOCK}.attn.{leaf}" for leaf in ATTENTION)),
    **same(*(f"{BLOCK}.cross_attn.{leaf}" for leaf in (*ATTENTION, *ADDED, "to_add_out"))),
    **same(*(f"{BLOCK}.ff.{leaf}.conv" for leaf in ("inverted_conv", "depth_conv", "point_conv"))),
    **same(*(f"lyric_encoder.encoders.{{}}.self_attn.linear_{leaf}" for leaf in ("q", "k", "v", "out", "pos"))),
    **same(*(f"lyric_encoder.encoders.{{}}.feed_forward.w_{i}" for i in (1, 2))),
    **same("lyric_encoder.embed.out.0", "speaker_embedder", "genre_embedder", "lyric_embs", "lyric_proj"),
    **same("projectors.{}.{}", "proj_in.early_conv_layers.{}"),
    **timestep("timestep_embedder"),
    "t_block.1": "adaln_single.linear",
    "final_layer.linear": "proj_out",
}
ACE = Family("ACE-Step", native=NATIVE, diffusers=renamed(NATIVE))

PROJECTIONS = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "o_proj": "to_out.0"}
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
LAYER = "layers.{}"
SELF, CROSS = (
    {f"{LAYER}.{attn}.{leaf}": f"{LAYER}.{attn}.{to}" for leaf, to in PROJECTIONS.items()}
    for attn in ("self_attn", "cross_attn")
)
DECODER: dict[str, Paths] = {
    **SELF,
    **CROSS,
    **same(*(f"{LAYER}.{leaf}" for leaf in MLP), "condition_embedder"),
    **timestep("time_embed"),
    **same("time_embed.time_proj", *(f"time_embed_r.{leaf}" for leaf in ("linear_1", "linear_2", "time_proj"))),
}
# Towers beside the decoder, of which diffusers has networks of their own.
TOWERS = ("encoder.lyric_encoder", "encoder.timbre_encoder", "tokenizer.attention_pooler", "detokenizer")
OTHERS = (
    *(f"{tower}.{leaf}" for tower in TOWERS for leaf in (*SELF, *(f"{LAYER}.{leaf}" for leaf in MLP))),
    *(f"{tower}.embed_tokens" for tower in TOWERS),
    *("encoder.text_projector", "tokenizer.audio_acoustic_proj", "detokenizer.proj_out"),
    *(f"tokenizer.quantizer.project_{way}" for way in ("in", "out")),
)
ACE15 = Family(
    "ACE-Step 1.5",
    native={
        **{f"decoder.{path}": canonical for path, canonical in DECODER.items()},
        **same(*OTHERS),
        "decoder.proj_in.1": "proj_in_conv",
        "decoder.proj_out.1": "proj_out_conv",
    },
    diffusers={path: canonical for path, canonical in DECODER.items() if path.startswith("time_embed.linear")},
    also=DECODER | {"proj_in.1": "proj_in_conv", "proj_out.1": "proj_out_conv"},
)
FAMILIES = (ACE, ACE15)
