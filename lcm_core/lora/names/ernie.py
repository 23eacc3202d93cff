"""ERNIE-Image, whose layers diffusers and the original spell alike.

`time_embedding.linear_1` and `linear_2` are left out: UNets have other layers under these names.
"""

from .family import ATTENTION, Family, Paths, renamed, same

LAYER = "layers.{}"
NATIVE: dict[str, Paths] = {
    **same(*(f"{LAYER}.self_attention.{leaf}" for leaf in ATTENTION)),
    **same(*(f"{LAYER}.mlp.{leaf}" for leaf in ("gate_proj", "up_proj", "linear_fc2"))),
    **same("text_proj", "adaLN_modulation.1", "final_norm.linear"),
    "x_embedder.proj": "pos_embed.proj",
    "final_linear": "proj_out",
}
ERNIE = Family("ERNIE-Image", native=NATIVE, diffusers=renamed(NATIVE))
FAMILIES = (ERNIE,)
