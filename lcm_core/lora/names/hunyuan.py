"""HunyuanVideo and its 1.5, and HunyuanImage 2.1: Flux' streams, with a refiner of the text, in names of their own."""

from .family import ADDED, Family, Paths, qkv, timestep
from .flux import BLOCKS, DOUBLE, GELU, MODULATION, SCALES, SINGLE

TEXT = "context_embedder.time_text_embed"
REFINER = "context_embedder.token_refiner.refiner_blocks.{}"
TXT = "txt_in.individual_token_refiner.blocks.{}"
STREAMS: dict[str, Paths] = {
    **{native: path for native, path in (BLOCKS | MODULATION).items() if native not in ("img_in", "txt_in")},
    "img_in.proj": "pos_embed.proj",
    "txt_in.input_embedder": "context_embedder.proj_in",
    "txt_in.t_embedder.in_layer": f"{TEXT}.timestep_embedder.linear_1",
    "txt_in.t_embedder.out_layer": f"{TEXT}.timestep_embedder.linear_2",
    "txt_in.c_embedder.in_layer": f"{TEXT}.text_embedder.linear_1",
    "txt_in.c_embedder.out_layer": f"{TEXT}.text_embedder.linear_2",
    f"{TXT}.self_attn.qkv": qkv(f"{REFINER}.attn"),
    f"{TXT}.self_attn.proj": f"{REFINER}.attn.to_out.0",
    f"{TXT}.mlp.0": f"{REFINER}.ff.net.0.proj",
    f"{TXT}.mlp.2": f"{REFINER}.ff.net.2",
    f"{TXT}.adaLN_modulation.1": f"{REFINER}.norm_out.linear",
}
DIFFUSERS: dict[str, Paths] = {
    "x_embedder.proj": "pos_embed.proj",
    "norm_out.linear": "~final_layer.adaLN_modulation.1",
}
# Their authors' names, in which musubi-tuner and sd-scripts write their files; ComfyUI has Flux' in place of them.
AUTHORS: dict[str, Paths] = {
    "double_blocks.{}.img_attn_qkv": qkv(f"{DOUBLE}.attn"),
    "double_blocks.{}.txt_attn_qkv": qkv(f"{DOUBLE}.attn", ADDED),
    "double_blocks.{}.img_attn_proj": f"{DOUBLE}.attn.to_out.0",
    "double_blocks.{}.txt_attn_proj": f"{DOUBLE}.attn.to_add_out",
    "double_blocks.{}.img_mlp.fc1": f"{DOUBLE}.ff.net.0.proj",
    "double_blocks.{}.img_mlp.fc2": f"{DOUBLE}.ff.net.2",
    "double_blocks.{}.txt_mlp.fc1": f"{DOUBLE}.ff_context.net.0.proj",
    "double_blocks.{}.txt_mlp.fc2": f"{DOUBLE}.ff_context.net.2",
    "double_blocks.{}.img_mod.linear": f"{DOUBLE}.norm1.linear",
    "double_blocks.{}.txt_mod.linear": f"{DOUBLE}.norm1_context.linear",
    "single_blocks.{}.modulation.linear": f"{SINGLE}.norm.linear",
    "time_in.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "time_in.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.mlp.0": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.mlp.2": "time_text_embed.guidance_embedder.linear_2",
    "txt_in.t_embedder.mlp.0": f"{TEXT}.timestep_embedder.linear_1",
    "txt_in.t_embedder.mlp.2": f"{TEXT}.timestep_embedder.linear_2",
    "txt_in.c_embedder.linear_1": f"{TEXT}.text_embedder.linear_1",
    "txt_in.c_embedder.linear_2": f"{TEXT}.text_embedder.linear_2",
    f"{TXT}.self_attn_qkv": qkv(f"{REFINER}.attn"),
    f"{TXT}.self_attn_proj": f"{REFINER}.attn.to_out.0",
    f"{TXT}.mlp.fc1": f"{REFINER}.ff.net.0.proj",
    f"{TXT}.mlp.fc2": f"{REFINER}.ff.net.2",
    **{f"double_blocks.{{}}.img_attn_{leaf}": f"{DOUBLE}.attn.to_{leaf}" for leaf in "qkv"},
    **{f"double_blocks.{{}}.txt_attn_{leaf}": f"{DOUBLE}.attn.add_{leaf}_proj" for leaf in "qkv"},
}
HUNYUAN_VIDEO = Family("HunyuanVideo", ratios=GELU, native=STREAMS, diffusers=DIFFUSERS, also=AUTHORS | SCALES)

GLYPHS: dict[str, Paths] = {f"byt5_in.fc{i}": f"context_embedder_2.linear_{i}" for i in (1, 2, 3)}
WITHOUT = ("single_blocks", "vector_in", "guidance_in")
HUNYUAN_VIDEO_15 = Family(
    "HunyuanVideo 1.5",
    ratios={path: ratio for path, ratio in GELU.items() if not path.startswith(SINGLE)},
    native={native: path for native, path in STREAMS.items() if not native.startswith(WITHOUT)}
    | GLYPHS
    | {"vision_in.proj.1": "image_embedder.linear_1", "vision_in.proj.3": "image_embedder.linear_2"},
    diffusers=DIFFUSERS | timestep("time_embed.timestep_embedder"),
    also=AUTHORS | SCALES,
)

EMBED = "time_guidance_embed"
RETURN = {
    "time_r_in.in_layer": f"{EMBED}.timestep_embedder_r.linear_1",
    "time_r_in.out_layer": f"{EMBED}.timestep_embedder_r.linear_2",
}
HUNYUAN_IMAGE = Family(
    "HunyuanImage",
    ratios=GELU,
    native={native: path for native, path in STREAMS.items() if not native.startswith("vector_in")} | GLYPHS | RETURN,
    diffusers=DIFFUSERS
    | timestep(f"{EMBED}.timestep_embedder")
    | {f"{EMBED}.guidance_embedder.linear_{i}": f"time_text_embed.guidance_embedder.linear_{i}" for i in (1, 2)},
    also=AUTHORS | SCALES,
)
FAMILIES = (HUNYUAN_VIDEO, HUNYUAN_VIDEO_15, HUNYUAN_IMAGE)
