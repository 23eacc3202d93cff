"""Wan 2.1 and 2.2: text, picture and reference to video, VACE and the networks with control of Fun."""

from .family import Family, Paths

BLOCKS = ("blocks.{}", "vace_blocks.{}")
LEAVES = {
    **{f"self_attn.{native}": f"attn1.{to}" for native, to in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"))},
    **{f"cross_attn.{native}": f"attn2.{to}" for native, to in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"))},
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.o": "attn2.to_out.0",
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    "norm3": "norm2",
    "modulation": "scale_shift_table",
}
NATIVE: dict[str, Paths] = {
    **{f"{block}.{native}": f"{block}.{leaf}" for block in BLOCKS for native, leaf in LEAVES.items()},
    "vace_blocks.{}.before_proj": "vace_blocks.{}.proj_in",
    "vace_blocks.{}.after_proj": "vace_blocks.{}.proj_out",
    "patch_embedding": "patch_embedding",
    "vace_patch_embedding": "vace_patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "time_text_embed.timestep_embedder.linear_1",
    "time_embedding.2": "time_text_embed.timestep_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
    "ref_conv": "ref_conv",
    "control_adapter.conv": "control_adapter.conv",
}
WAN = Family(
    "Wan",
    native=NATIVE,
    diffusers={
        "condition_embedder.time_embedder.linear_1": "time_text_embed.timestep_embedder.linear_1",
        "condition_embedder.time_embedder.linear_2": "time_text_embed.timestep_embedder.linear_2",
    },
)
FAMILIES = (WAN,)
