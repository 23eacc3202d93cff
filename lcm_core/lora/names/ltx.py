"""LTX-Video and LTX-2, which adds sound and the connectors of its text encoder."""

from .family import ATTENTION, Family, Paths, same, timestep

BLOCK = "transformer_blocks.{}"
GATED = (*ATTENTION, "to_gate_logits")
FEED_FORWARD = ("net.0.proj", "net.2")
CAPTION = ("caption_projection.linear_1", "caption_projection.linear_2")
TIMESTEP = timestep("adaln_single.emb.timestep_embedder")
TIMESTEP_DIFFUSERS = timestep("time_embed.emb.timestep_embedder")
LTX = Family(
    "LTX-Video",
    native={
        **same(*(f"{BLOCK}.{attn}.{leaf}" for attn in ("attn1", "attn2") for leaf in ATTENTION)),
        **same(*(f"{BLOCK}.ff.{leaf}" for leaf in FEED_FORWARD), "adaln_single.linear", "proj_out", *CAPTION),
        **TIMESTEP,
        "patchify_proj": "proj_in",
    },
    diffusers={**TIMESTEP_DIFFUSERS, "time_embed.linear": "adaln_single.linear"},
)

MODES = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
# Layers that make a modulation of the timestep: diffusers' name of each.
MODULATIONS = {
    "audio_adaln_single": "audio_time_embed",
    "prompt_adaln_single": "prompt_adaln",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
}
MODULATION = ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
CONNECTORS = {f"{mode}_embeddings_connector": f"connectors.{mode}_connector" for mode in ("video", "audio")}
CONNECTOR = (*(f"attn1.{leaf}" for leaf in GATED), *(f"ff.{leaf}" for leaf in FEED_FORWARD))
LTX2_NATIVE: dict[str, Paths] = {
    **same(*(f"{BLOCK}.{mode}.{leaf}" for mode in MODES for leaf in GATED)),
    **same(*(f"{BLOCK}.{mode}.{leaf}" for mode in ("ff", "audio_ff") for leaf in FEED_FORWARD)),
    **same("adaln_single.linear", "proj_out", "audio_proj_out", *CAPTION, *(f"audio_{leaf}" for leaf in CAPTION)),
    **same(*(f"{native}.{leaf}" for native in MODULATIONS for leaf in MODULATION)),
    **same(*(f"{native}.transformer_1d_blocks.{{}}.{leaf}" for native in CONNECTORS for leaf in CONNECTOR)),
    **TIMESTEP,
    "patchify_proj": "proj_in",
    "audio_patchify_proj": "audio_proj_in",
}
LTX2 = Family(
    "LTX-2",
    native=LTX2_NATIVE,
    diffusers={
        **TIMESTEP_DIFFUSERS,
        "time_embed.linear": "adaln_single.linear",
        **{f"{to}.{leaf}": f"{native}.{leaf}" for native, to in MODULATIONS.items() for leaf in MODULATION},
        **{
            f"{to}.transformer_blocks.{{}}.{leaf}": f"{native}.transformer_1d_blocks.{{}}.{leaf}"
            for native, to in CONNECTORS.items()
            for leaf in CONNECTOR
        },
    },
)
FAMILIES = (LTX, LTX2)
