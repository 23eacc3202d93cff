"""Krea 2."""

from .family import Family, Paths

BLOCK = "transformer_blocks.{}"
ATTENTION = {"wq": "to_q", "wk": "to_k", "wv": "to_v", "wo": "to_out.0", "gate": "to_gate"}
STACKS = {
    "blocks.{}": BLOCK,
    "txtfusion.layerwise_blocks.{}": "text_fusion.layerwise_blocks.{}",
    "txtfusion.refiner_blocks.{}": "text_fusion.refiner_blocks.{}",
}
NATIVE: dict[str, Paths] = {
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
    native=NATIVE,
    diffusers={
        "img_in": "x_embedder",
        "final_layer.linear": "proj_out",
        "time_embed.linear_1": "time_text_embed.timestep_embedder.linear_1",
        "time_embed.linear_2": "time_text_embed.timestep_embedder.linear_2",
    },
    also={f"{to}.attn.to_out": f"{to}.attn.to_out.0" for to in STACKS.values()},
)
FAMILIES = (KREA2,)
