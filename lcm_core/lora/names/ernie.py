"""ERNIE-Image, whose layers diffusers and the original spell alike.

UNets have other layers under the names of its embedder of timesteps.
"""

from .family import ATTENTION, Family, Paths, renamed, same, timestep

LAYER = "layers.{}"
TIME = timestep("time_embedding")
NATIVE: dict[str, Paths] = {
    **same(*(f"{LAYER}.self_attention.{leaf}" for leaf in ATTENTION)),
    **same(*(f"{LAYER}.mlp.{leaf}" for leaf in ("gate_proj", "up_proj", "linear_fc2"))),
    **same("text_proj", "adaLN_modulation.1", "final_norm.linear"),
    "x_embedder.proj": "pos_embed.proj",
    "final_linear": "proj_out",
    **TIME,
}
ERNIE = Family("ERNIE-Image", native=NATIVE, diffusers=renamed(NATIVE), shared=TIME.keys())
FAMILIES = (ERNIE,)
