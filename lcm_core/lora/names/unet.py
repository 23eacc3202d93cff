"""The UNet of Stable Diffusion 1.x, 2.x and XL: the original (LDM) names of its modules and diffusers'."""

from __future__ import annotations

import re
from collections.abc import Mapping


def _ldm_blocks(levels: int = 6) -> dict[str, str]:
    """LDM path -> diffusers path of the blocks of a Stable Diffusion UNet: two resnets a level down, three up."""
    blocks = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "time_embed.cond_proj": "time_embedding.cond_proj",
        "label_emb.0.0": "add_embedding.linear_1",
        "label_emb.0.2": "add_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
    }
    for level in range(levels):
        for j in range(2):
            blocks[f"input_blocks.{3 * level + 1 + j}.0"] = f"down_blocks.{level}.resnets.{j}"
            blocks[f"input_blocks.{3 * level + 1 + j}.1"] = f"down_blocks.{level}.attentions.{j}"
        blocks[f"input_blocks.{3 * level + 3}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        for j in range(3):
            blocks[f"output_blocks.{3 * level + j}.0"] = f"up_blocks.{level}.resnets.{j}"
            blocks[f"output_blocks.{3 * level + j}.1"] = f"up_blocks.{level}.attentions.{j}"
        # The upsampler's slot is 1 on a level without attention, else 2: the diffusers name alone doesn't tell.
        for slot in (1, 2):
            blocks[f"output_blocks.{3 * level + 2}.{slot}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    return blocks


LDM_BLOCKS = _ldm_blocks()

RESNET_LEAVES: dict[str, str] = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}

_TO_LDM = {diffusers: ldm for ldm, diffusers in LDM_BLOCKS.items() if "upsamplers" not in diffusers}
_TO_LDM_LEAVES = {diffusers: ldm for ldm, diffusers in RESNET_LEAVES.items()}

# Every word of a CLIP text encoder or Stable Diffusion UNet path: what gives a flattened name its dots back.
VOCABULARY = re.findall(
    r"\w+",
    """
    down_blocks up_blocks mid_block resnets attentions downsamplers upsamplers transformer_blocks attn1 attn2 ff net
    to_q to_k to_v to_out proj proj_in proj_out time_emb_proj time_embedding add_embedding linear_1 linear_2 cond_proj
    conv conv1 conv2 conv_in conv_out conv_norm_out conv_shortcut norm norm1 norm2 norm3
    input_blocks middle_block output_blocks in_layers out_layers emb_layers skip_connection time_embed label_emb out op
    text_model text_projection encoder layers embeddings token_embedding position_embedding self_attn q_proj k_proj
    v_proj out_proj mlp fc1 fc2 layer_norm1 layer_norm2 final_layer_norm
    """,
)
_WORD = re.compile(rf"({'|'.join(sorted(VOCABULARY, key=len, reverse=True))}|\d+)(?:_|$)")


def to_diffusers(path: str) -> str:
    """diffusers' path of a module, from LDM's or its own."""
    return _translate(path, LDM_BLOCKS, RESNET_LEAVES)


def to_ldm(path: str) -> str:
    """LDM's path of a module; an upsampler's, whose slot depends on the architecture, stays diffusers'."""
    return _translate(path, _TO_LDM, _TO_LDM_LEAVES)


def unflatten(path: str) -> str:
    """The path with its dots, of a UNet or CLIP text encoder; another path as it is."""
    words, end = [], 0
    while match := _WORD.match(path, end):
        words.append(match[1])
        end = match.end()
    return ".".join(words) if end == len(path) and path else path


def _translate(path: str, blocks: Mapping[str, str], leaves: Mapping[str, str]) -> str:
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        block = blocks.get(".".join(parts[:cut]))
        if block is not None:
            leaf = ".".join(parts[cut:])
            return ".".join(filter(None, (block, leaves.get(leaf, leaf))))
    return path
