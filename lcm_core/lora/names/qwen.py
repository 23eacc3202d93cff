"""Qwen-Image, which diffusers and the original spell alike."""

from .family import ADDED, ATTENTION, Family, Paths, renamed, same

BLOCK = "transformer_blocks.{}"
NATIVE: dict[str, Paths] = {
    **same(*(f"{BLOCK}.attn.{leaf}" for leaf in (*ATTENTION, *ADDED, "to_add_out"))),
    **same(*(f"{BLOCK}.{s}_mlp.net.{leaf}" for s in ("img", "txt") for leaf in ("0.proj", "2"))),
    **same(f"{BLOCK}.img_mod.1", f"{BLOCK}.txt_mod.1", "proj_out"),
    **same("time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2"),
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "norm_out.linear": "~final_layer.adaLN_modulation.1",
}
QWEN = Family("Qwen-Image", native=NATIVE, diffusers=renamed(NATIVE))
FAMILIES = (QWEN,)
