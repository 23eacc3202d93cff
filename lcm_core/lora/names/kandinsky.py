"""Kandinsky 5, which diffusers and the original spell alike."""

from .family import Family, same

TEXT, VISUAL = "text_transformer_blocks.{}", "visual_transformer_blocks.{}"
ATTENTION = ("to_query", "to_key", "to_value", "out_layer")
KANDINSKY5 = Family(
    "Kandinsky 5",
    native=same(
        *(f"{block}.self_attention.{leaf}" for block in (TEXT, VISUAL) for leaf in ATTENTION),
        *(f"{VISUAL}.cross_attention.{leaf}" for leaf in ATTENTION),
        *(f"{block}.feed_forward.{leaf}" for block in (TEXT, VISUAL) for leaf in ("in_layer", "out_layer")),
        *(f"{TEXT}.text_modulation.out_layer", f"{VISUAL}.visual_modulation.out_layer"),
        *(f"{kind}_embeddings.in_layer" for kind in ("time", "text", "pooled_text", "visual")),
        *("time_embeddings.out_layer", "out_layer.modulation.out_layer", "out_layer.out_layer"),
    ),
)
FAMILIES = (KANDINSKY5,)
