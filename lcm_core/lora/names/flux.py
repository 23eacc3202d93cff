"""Flux.1, Flux.2 and Chroma: networks of double and single stream blocks."""

from .family import ADDED, Family, Paths, qkv

DOUBLE, SINGLE = "transformer_blocks.{}", "single_transformer_blocks.{}"
LINEAR1 = (*qkv(f"{SINGLE}.attn"), f"{SINGLE}.proj_mlp")
NORMS: dict[str, Paths] = {
    "double_blocks.{}.img_attn.norm.query_norm": f"{DOUBLE}.attn.norm_q",
    "double_blocks.{}.img_attn.norm.key_norm": f"{DOUBLE}.attn.norm_k",
    "double_blocks.{}.txt_attn.norm.query_norm": f"{DOUBLE}.attn.norm_added_q",
    "double_blocks.{}.txt_attn.norm.key_norm": f"{DOUBLE}.attn.norm_added_k",
    "single_blocks.{}.norm.query_norm": f"{SINGLE}.attn.norm_q",
    "single_blocks.{}.norm.key_norm": f"{SINGLE}.attn.norm_k",
}
# The same by the parameter that the original network, and an older ComfyUI, has in place of a weight.
SCALES = {f"{norm}.scale": path for norm, path in NORMS.items()}
BLOCKS: dict[str, Paths] = {
    **NORMS,
    "double_blocks.{}.img_attn.qkv": qkv(f"{DOUBLE}.attn"),
    "double_blocks.{}.txt_attn.qkv": qkv(f"{DOUBLE}.attn", ADDED),
    "double_blocks.{}.img_attn.proj": f"{DOUBLE}.attn.to_out.0",
    "double_blocks.{}.txt_attn.proj": f"{DOUBLE}.attn.to_add_out",
    "double_blocks.{}.img_mlp.0": f"{DOUBLE}.ff.net.0.proj",
    "double_blocks.{}.img_mlp.2": f"{DOUBLE}.ff.net.2",
    "double_blocks.{}.txt_mlp.0": f"{DOUBLE}.ff_context.net.0.proj",
    "double_blocks.{}.txt_mlp.2": f"{DOUBLE}.ff_context.net.2",
    "single_blocks.{}.linear1": LINEAR1,
    "single_blocks.{}.linear2": f"{SINGLE}.proj_out",
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
}
MODULATION: dict[str, Paths] = {
    "double_blocks.{}.img_mod.lin": f"{DOUBLE}.norm1.linear",
    "double_blocks.{}.txt_mod.lin": f"{DOUBLE}.norm1_context.linear",
    "single_blocks.{}.modulation.lin": f"{SINGLE}.norm.linear",
    "final_layer.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
}
XLABS: dict[str, Paths] = {
    "double_blocks.{}.processor.qkv_lora1": qkv(f"{DOUBLE}.attn"),
    "double_blocks.{}.processor.qkv_lora2": qkv(f"{DOUBLE}.attn", ADDED),
    "double_blocks.{}.processor.proj_lora1": f"{DOUBLE}.attn.to_out.0",
    "double_blocks.{}.processor.proj_lora2": f"{DOUBLE}.attn.to_add_out",
    "single_blocks.{}.processor.qkv": qkv(f"{SINGLE}.attn"),
    "single_blocks.{}.processor.proj": f"{SINGLE}.proj_out",
    "single_blocks.{}.linear1_qkv": qkv(f"{SINGLE}.attn"),
}
MLP = (f"{DOUBLE}.ff.net.0.proj", f"{DOUBLE}.ff_context.net.0.proj", f"{SINGLE}.proj_mlp")
GELU, SWIGLU = dict.fromkeys(MLP, 4), dict.fromkeys(MLP, 6)
FLUX = Family(
    "Flux",
    ratios=GELU,
    native=BLOCKS | MODULATION,
    diffusers={"norm_out.linear": "~final_layer.adaLN_modulation.1"},
    also=XLABS | SCALES,
)

FUSED = "to_qkv_mlp_proj"
FLUX2 = Family(
    "Flux.2",
    ratios=SWIGLU,
    native=BLOCKS
    | {
        "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
        "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
        "single_stream_modulation.lin": "single_stream_modulation.linear",
        **{native: path for native, path in MODULATION.items() if native.startswith(("final", "time", "guidance"))},
    },
    diffusers={
        f"{DOUBLE}.ff.linear_in": f"{DOUBLE}.ff.net.0.proj",
        f"{DOUBLE}.ff.linear_out": f"{DOUBLE}.ff.net.2",
        f"{DOUBLE}.ff_context.linear_in": f"{DOUBLE}.ff_context.net.0.proj",
        f"{DOUBLE}.ff_context.linear_out": f"{DOUBLE}.ff_context.net.2",
        f"{SINGLE}.attn.{FUSED}": LINEAR1,
        f"{SINGLE}.attn.to_out": f"{SINGLE}.proj_out",
        "norm_out.linear": "~final_layer.adaLN_modulation.1",
        "time_guidance_embed.timestep_embedder.linear_1": "time_text_embed.timestep_embedder.linear_1",
        "time_guidance_embed.timestep_embedder.linear_2": "time_text_embed.timestep_embedder.linear_2",
        "time_guidance_embed.guidance_embedder.linear_1": "time_text_embed.guidance_embedder.linear_1",
        "time_guidance_embed.guidance_embedder.linear_2": "time_text_embed.guidance_embedder.linear_2",
    },
    also=SCALES,
)

CHROMA = Family(
    "Chroma",
    ratios=GELU,
    native=BLOCKS
    | {
        "distilled_guidance_layer.in_proj": "distilled_guidance_layer.in_proj",
        "distilled_guidance_layer.layers.{}.in_layer": "distilled_guidance_layer.layers.{}.linear_1",
        "distilled_guidance_layer.layers.{}.out_layer": "distilled_guidance_layer.layers.{}.linear_2",
        "distilled_guidance_layer.out_proj": "distilled_guidance_layer.out_proj",
    },
    also=SCALES,
)
FAMILIES = (FLUX, FLUX2, CHROMA)
