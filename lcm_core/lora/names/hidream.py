"""HiDream I1, whose layers diffusers and the original spell alike."""

from .family import ATTENTION, Family, Paths, renamed, same, timestep

DOUBLE, SINGLE = "double_stream_blocks.{}.block", "single_stream_blocks.{}.block"
PROJECTIONS = (*ATTENTION[:3], "to_out")
MIXTURE = (
    *(f"ff_i.shared_experts.w{i}" for i in (1, 2, 3)),
    *(f"ff_i.experts.{{}}.w{i}" for i in (1, 2, 3)),
    "ff_i.gate",
)
NATIVE: dict[str, Paths] = {
    **same(*(f"{b}.attn1.{leaf}" for b in (DOUBLE, SINGLE) for leaf in PROJECTIONS)),
    **same(*(f"{DOUBLE}.attn1.{leaf}_t" for leaf in PROJECTIONS)),
    **same(*(f"{b}.{leaf}" for b in (DOUBLE, SINGLE) for leaf in MIXTURE)),
    **same(*(f"{DOUBLE}.ff_t.w{i}" for i in (1, 2, 3))),
    **same(*(f"{b}.adaLN_modulation.1" for b in (DOUBLE, SINGLE))),
    **same("final_layer.adaLN_modulation.1", "caption_projection.{}.linear"),
    **timestep("t_embedder.timestep_embedder"),
    "p_embedder.pooled_embedder.linear_1": "time_text_embed.text_embedder.linear_1",
    "p_embedder.pooled_embedder.linear_2": "time_text_embed.text_embedder.linear_2",
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.linear": "proj_out",
}
HIDREAM = Family("HiDream", native=NATIVE, diffusers=renamed(NATIVE))
FAMILIES = (HIDREAM,)
