"""Stable Diffusion 3 and 3.5, and AuraFlow."""

from .family import ADDED, Family, qkv, same

JOINT = "transformer_blocks.{}"
SD3 = Family(
    "Stable Diffusion 3",
    native={
        "joint_blocks.{}.x_block.attn.qkv": qkv(f"{JOINT}.attn"),
        "joint_blocks.{}.context_block.attn.qkv": qkv(f"{JOINT}.attn", ADDED),
        "joint_blocks.{}.x_block.attn2.qkv": qkv(f"{JOINT}.attn2"),
        "joint_blocks.{}.x_block.attn.proj": f"{JOINT}.attn.to_out.0",
        "joint_blocks.{}.context_block.attn.proj": f"{JOINT}.attn.to_add_out",
        "joint_blocks.{}.x_block.attn2.proj": f"{JOINT}.attn2.to_out.0",
        "joint_blocks.{}.x_block.mlp.fc1": f"{JOINT}.ff.net.0.proj",
        "joint_blocks.{}.x_block.mlp.fc2": f"{JOINT}.ff.net.2",
        "joint_blocks.{}.context_block.mlp.fc1": f"{JOINT}.ff_context.net.0.proj",
        "joint_blocks.{}.context_block.mlp.fc2": f"{JOINT}.ff_context.net.2",
        "joint_blocks.{}.x_block.adaLN_modulation.1": f"{JOINT}.norm1.linear",
        "joint_blocks.{}.context_block.adaLN_modulation.1": f"~{JOINT}.norm1_context.linear",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
        "x_embedder.proj": "pos_embed.proj",
        "final_layer.linear": "proj_out",
        **same("context_embedder", "final_layer.adaLN_modulation.1"),
    },
    diffusers={"norm_out.linear": "~final_layer.adaLN_modulation.1"},
)

DOUBLE, SINGLE = "joint_transformer_blocks.{}", "single_transformer_blocks.{}"
AURAFLOW = Family(
    "AuraFlow",
    native={
        "double_layers.{}.attn.w2q": f"{DOUBLE}.attn.to_q",
        "double_layers.{}.attn.w2k": f"{DOUBLE}.attn.to_k",
        "double_layers.{}.attn.w2v": f"{DOUBLE}.attn.to_v",
        "double_layers.{}.attn.w2o": f"{DOUBLE}.attn.to_out.0",
        "double_layers.{}.attn.w1q": f"{DOUBLE}.attn.add_q_proj",
        "double_layers.{}.attn.w1k": f"{DOUBLE}.attn.add_k_proj",
        "double_layers.{}.attn.w1v": f"{DOUBLE}.attn.add_v_proj",
        "double_layers.{}.attn.w1o": f"{DOUBLE}.attn.to_add_out",
        "double_layers.{}.mlpX.c_fc1": f"{DOUBLE}.ff.linear_1",
        "double_layers.{}.mlpX.c_fc2": f"{DOUBLE}.ff.linear_2",
        "double_layers.{}.mlpX.c_proj": f"{DOUBLE}.ff.out_projection",
        "double_layers.{}.mlpC.c_fc1": f"{DOUBLE}.ff_context.linear_1",
        "double_layers.{}.mlpC.c_fc2": f"{DOUBLE}.ff_context.linear_2",
        "double_layers.{}.mlpC.c_proj": f"{DOUBLE}.ff_context.out_projection",
        "double_layers.{}.modX.1": f"{DOUBLE}.norm1.linear",
        "double_layers.{}.modC.1": f"{DOUBLE}.norm1_context.linear",
        "single_layers.{}.attn.w1q": f"{SINGLE}.attn.to_q",
        "single_layers.{}.attn.w1k": f"{SINGLE}.attn.to_k",
        "single_layers.{}.attn.w1v": f"{SINGLE}.attn.to_v",
        "single_layers.{}.attn.w1o": f"{SINGLE}.attn.to_out.0",
        "single_layers.{}.mlp.c_fc1": f"{SINGLE}.ff.linear_1",
        "single_layers.{}.mlp.c_fc2": f"{SINGLE}.ff.linear_2",
        "single_layers.{}.mlp.c_proj": f"{SINGLE}.ff.out_projection",
        "single_layers.{}.modCX.1": f"{SINGLE}.norm1.linear",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "cond_seq_linear": "context_embedder",
        "init_x_linear": "pos_embed.proj",
        "final_linear": "proj_out",
        "modF.1": "final_layer.adaLN_modulation.1",
    },
    diffusers={
        "time_step_proj.linear_1": "time_text_embed.timestep_embedder.linear_1",
        "time_step_proj.linear_2": "time_text_embed.timestep_embedder.linear_2",
        "norm_out.linear": "~final_layer.adaLN_modulation.1",
    },
)
FAMILIES = (SD3, AURAFLOW)
