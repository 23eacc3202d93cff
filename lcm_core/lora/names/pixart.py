"""PixArt alpha and sigma."""

from .family import Family, qkv

BLOCK = "transformer_blocks.{}"
PIXART = Family(
    "PixArt",
    native={
        "blocks.{}.attn.qkv": qkv(f"{BLOCK}.attn1"),
        "blocks.{}.attn.proj": f"{BLOCK}.attn1.to_out.0",
        "blocks.{}.cross_attn.q_linear": f"{BLOCK}.attn2.to_q",
        "blocks.{}.cross_attn.kv_linear": qkv(f"{BLOCK}.attn2", ("to_k", "to_v")),
        "blocks.{}.cross_attn.proj": f"{BLOCK}.attn2.to_out.0",
        "blocks.{}.mlp.fc1": f"{BLOCK}.ff.net.0.proj",
        "blocks.{}.mlp.fc2": f"{BLOCK}.ff.net.2",
        "t_block.1": "adaln_single.linear",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "csize_embedder.mlp.0": "adaln_single.emb.resolution_embedder.linear_1",
        "csize_embedder.mlp.2": "adaln_single.emb.resolution_embedder.linear_2",
        "ar_embedder.mlp.0": "adaln_single.emb.aspect_ratio_embedder.linear_1",
        "ar_embedder.mlp.2": "adaln_single.emb.aspect_ratio_embedder.linear_2",
        "y_embedder.y_proj.fc1": "caption_projection.linear_1",
        "y_embedder.y_proj.fc2": "caption_projection.linear_2",
        "x_embedder.proj": "pos_embed.proj",
        "final_layer.linear": "proj_out",
    },
    diffusers={
        "adaln_single.emb.timestep_embedder.linear_1": "time_text_embed.timestep_embedder.linear_1",
        "adaln_single.emb.timestep_embedder.linear_2": "time_text_embed.timestep_embedder.linear_2",
    },
)
FAMILIES = (PIXART,)
