"""Cosmos Predict2, and Anima, which adds an adapter of its text encoder."""

from .family import Family, same

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

PROJECTED = tuple(f"{attn}.{leaf}_proj" for attn in ("self_attn", "cross_attn") for leaf in "qkvo")
ADAPTER = (*(f"blocks.{{}}.{leaf}" for leaf in (*PROJECTED, "mlp.0", "mlp.2")), "in_proj", "out_proj")
ANIMA = Family(
    "Anima",
    native={**COSMOS.native, **same(*(f"llm_adapter.{leaf}" for leaf in ADAPTER))},
    diffusers={**COSMOS.diffusers, **{f"text_conditioner.{leaf}": f"llm_adapter.{leaf}" for leaf in ADAPTER}},
)
FAMILIES = (COSMOS, ANIMA)
