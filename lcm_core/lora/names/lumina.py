"""Lumina 2 and Z-Image: one network, whose parts diffusers names in two ways.

Cosmos has other layers under Lumina 2's `norm_out.linear_1` and `linear_2` of diffusers.
"""

from .family import Family, Paths, qkv

STACKS = ("layers.{}", "noise_refiner.{}", "context_refiner.{}")
NATIVE: dict[str, Paths] = {
    **{f"{s}.attention.qkv": qkv(f"{s}.attention") for s in STACKS},
    **{f"{s}.attention.out": f"{s}.attention.to_out.0" for s in STACKS},
    **{f"{s}.feed_forward.w{i}": f"{s}.feed_forward.w{i}" for s in STACKS for i in (1, 2, 3)},
    "x_embedder": "x_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "cap_embedder.1": "cap_embedder.1",
}
MODULATED = STACKS[:2]
LEAVES = ("to_q", "to_k", "to_v", "to_out.0")
NORM_OUT: dict[str, Paths] = {
    "norm_out.linear_1": "final_layer.adaLN_modulation.1",
    "norm_out.linear_2": "proj_out",
}
LUMINA2 = Family(
    "Lumina 2",
    native=NATIVE | {f"{s}.adaLN_modulation.1": f"{s}.adaLN_modulation" for s in MODULATED},
    diffusers={
        **{f"{s}.attn.{leaf}": f"{s}.attention.{leaf}" for s in STACKS for leaf in LEAVES},
        **{f"{s}.feed_forward.linear_{i}": f"{s}.feed_forward.w{i}" for s in STACKS for i in (1, 2, 3)},
        **{f"{s}.norm1.linear": f"{s}.adaLN_modulation" for s in MODULATED},
        "time_caption_embed.timestep_embedder.linear_1": "time_text_embed.timestep_embedder.linear_1",
        "time_caption_embed.timestep_embedder.linear_2": "time_text_embed.timestep_embedder.linear_2",
        "time_caption_embed.caption_embedder.1": "cap_embedder.1",
        **NORM_OUT,
    },
    shared=NORM_OUT.keys(),
)
Z_IMAGE = Family(
    "Z-Image",
    native=NATIVE | {f"{s}.adaLN_modulation.0": f"{s}.adaLN_modulation" for s in MODULATED},
    diffusers={
        **{f"{s}.adaLN_modulation.0": f"{s}.adaLN_modulation" for s in MODULATED},
        "all_x_embedder.2-1": "x_embedder",
        "all_final_layer.2-1.linear": "proj_out",
        "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    },
)
FAMILIES = (LUMINA2, Z_IMAGE)
