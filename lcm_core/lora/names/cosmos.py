"""Cosmos Predict2 and Anima, and Krea 2: networks of plain blocks with a name for every projection."""

from .family import Family, Paths

BLOCK = "transformer_blocks.{}"
MODULATIONS = {"self_attn": "norm1", "cross_attn": "norm2", "mlp": "norm3"}
PROJECTIONS = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "output_proj": "to_out.0"}
COSMOS = Family(
    "Cosmos Predict2",
    native={
        **{f"blocks.{{}}.self_attn.{native}": f"{BLOCK}.attn1.{leaf}" for native, leaf in PROJECTIONS.items()},
        **{f"blocks.{{}}.cross_attn.{native}": f"{BLOCK}.attn2.{leaf}" for native, leaf in PROJECTIONS.items()},
        **{
            f"blocks.{{}}.adaln_modulation_{native}.{i}": f"{BLOCK}.{norm}.linear_{i}"
            for native, norm in MODULATIONS.items()
            for i in (1, 2)
        },
        "blocks.{}.mlp.layer1": f"{BLOCK}.ff.net.0.proj",
        "blocks.{}.mlp.layer2": f"{BLOCK}.ff.net.2",
        "t_embedder.1.linear_1": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.1.linear_2": "time_text_embed.timestep_embedder.linear_2",
        "x_embedder.proj.1": "patch_embed.proj",
        "final_layer.adaln_modulation.1": "norm_out.linear_1",
        "final_layer.adaln_modulation.2": "norm_out.linear_2",
        "final_layer.linear": "proj_out",
    },
    diffusers={
        "time_embed.t_embedder.linear_1": "time_text_embed.timestep_embedder.linear_1",
        "time_embed.t_embedder.linear_2": "time_text_embed.timestep_embedder.linear_2",
    },
)

ATTENTION = {"wq": "to_q", "wk": "to_k", "wv": "to_v", "wo": "to_out.0", "gate": "to_gate"}
STACKS = {
    "blocks.{}": BLOCK,
    "txtfusion.layerwise_blocks.{}": "text_fusion.layerwise_blocks.{}",
    "txtfusion.refiner_blocks.{}": "text_fusion.refiner_blocks.{}",
}
KREA2_NATIVE: dict[str, Paths] = {
    **{f"{s}.attn.{native}": f"{to}.attn.{leaf}" for s, to in STACKS.items() for native, leaf in ATTENTION.items()},
    **{f"{s}.mlp.{leaf}": f"{to}.ff.{leaf}" for s, to in STACKS.items() for leaf in ("gate", "up", "down")},
    "first": "x_embedder",
    "tmlp.0": "time_text_embed.timestep_embedder.linear_1",
    "tmlp.2": "time_text_embed.timestep_embedder.linear_2",
    "tproj.1": "time_mod_proj",
    "txtmlp.1": "txt_in.linear_1",
    "txtmlp.3": "txt_in.linear_2",
    "txtfusion.projector": "text_fusion.projector",
    "last.linear": "proj_out",
}
KREA2 = Family(
    "Krea 2",
    native=KREA2_NATIVE,
    diffusers={
        "img_in": "x_embedder",
        "final_layer.linear": "proj_out",
        "time_embed.linear_1": "time_text_embed.timestep_embedder.linear_1",
        "time_embed.linear_2": "time_text_embed.timestep_embedder.linear_2",
    },
)
FAMILIES = (COSMOS, KREA2)
