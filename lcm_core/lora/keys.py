"""One canonical name for a module, whatever dialect a LoRA file spells it in.

Canonical names are `<component>.<dotted diffusers path>`, e.g. `unet.mid_block.resnets.0.conv1` or
`text_encoder.text_model.encoder.layers.0.mlp.fc1`. Three dialects are written: `kohya`
(`lora_unet_mid_block_resnets_0_conv1`), `peft` (`unet.mid_block.resnets.0.conv1`) and `native`, ComfyUI's
(`diffusion_model.middle_block.0.in_layers.2`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from ..text import quoted, shortened

DIALECTS = ("kohya", "peft", "native")


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

_UNET_HEADS = (
    r"(?:(?:down|up|input|output)_blocks|mid_block|middle_block|time_embed|time_embedding|add_embedding|label_emb|out)\."
    r"|(?:conv_in|conv_out|conv_norm_out)$"
)
_OTHER_UNET_HEADS = r"(?:double_blocks|single_blocks|joint_blocks)\."
_CLIP_HEADS = r"encoder\.layers\.\d+\.(?:self_attn|mlp|layer_norm)|embeddings\.\w+_embedding$|final_layer_norm$"
_TRANSFORMER_HEADS = r"(?:single_)?transformer_blocks\."
_PREFIXES = tuple(
    (re.compile(prefix), component)
    for prefix, component in (
        (r"(?:model\.)?diffusion_model\.", "unet"),
        (r"unet\.", "unet"),
        (r"lora_transformer_|lycoris_(?=(?:single_)?transformer_blocks_)", "transformer"),
        (r"lora_unet_|lycoris_", "unet"),
        (r"lora_te1?_", "text_encoder"),
        (r"lora_te2_", "text_encoder_2"),
        (r"text_encoder\.", "text_encoder"),
        (r"text_encoder_2\.", "text_encoder_2"),
        (r"(?:text_encoders\.)?clip_[lh]\.transformer\.", "text_encoder"),
        (r"(?:text_encoders\.)?clip_g\.transformer\.", "text_encoder_2"),
        (rf"(?=text_model\.|{_CLIP_HEADS})", "text_encoder"),
        (rf"(?={_UNET_HEADS}|{_OTHER_UNET_HEADS})", "unet"),
        (rf"(?={_TRANSFORMER_HEADS})", "transformer"),
    )
)
_PEFT_WRAPPER = re.compile(r"^((?:unet|text_encoder|text_encoder_2|transformer)\.)?base_model\.model\.")
_TIDY = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\.processor\.(to_[qkv]|to_out)", r".\1"),
        (r"^(text_encoder(?:_2)?\..*\.self_attn)\.to_([qkv])$", r"\1.\2_proj"),
        (r"^(text_encoder(?:_2)?\..*\.self_attn)\.to_out$", r"\1.out_proj"),
        (r"\.to_out$", ".to_out.0"),
        (rf"^(text_encoder(?:_2)?)\.(?={_CLIP_HEADS})", r"\1.text_model."),
    )
)

_KOHYA_PREFIX = {
    "unet": "lora_unet_",
    "text_encoder": "lora_te_",
    "text_encoder_2": "lora_te2_",
    "transformer": "lora_transformer_",
}

HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
KRONECKER = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")

# What follows the module's name in a key. The last four roles can't be summed as a vector. A LoRA's own bias ("bias",
# PEFT's lora_bias) is scaled by alpha/rank, a bias difference ("diff_b") is not.
SUFFIXES: dict[str, str] = {
    "down": r"\.lora_down\.weight|\.lora_A(?:(?:\.[^.]+)?\.weight)?|(?:\.lora|\.lora_linear_layer|_lora)\.down\.weight",
    "up": r"\.lora_up\.weight|\.lora_B(?:(?:\.[^.]+)?\.weight)?|(?:\.lora|\.lora_linear_layer|_lora)\.up\.weight",
    "mid": r"\.lora_mid\.weight",
    "bias": r"\.lora_B(?:\.[^.]+)?\.bias",
    "alpha": r"\.alpha",
    "diff": r"\.diff|\.w_norm",
    "diff_b": r"\.diff_b|\.b_norm",
    **{role: rf"\.{role}(?:\.[^.]+)?" for role in HADAMARD + KRONECKER},
    "DoRA": r"\.dora_scale|\.lora_magnitude_vector(?:\.[^.]+)*",
    "GLoRA": r"\.(?:[ab][12]|bm)\.weight",
    "OFT": r"\.b?oft_\w+(?:\.\w+)*|\.rescale",
    "replacement": r"\.set_weight|\.reshape_weight",
}
_SUFFIX = re.compile(r"(?=[._])(?:" + "|".join(f"(?P<{role}>{suffix})" for role, suffix in SUFFIXES.items()) + r")\Z")


def flat(name: str) -> str:
    """The name with its dots as underscores: equal for the flattened and the dotted spelling of one module."""
    return name.replace(".", "_")


@lru_cache(maxsize=1 << 14)
def canonical_name(name: str) -> str:
    """The canonical name of a module path in any dialect (without `.weight` or a LoRA suffix).

    A flattened path of an architecture whose words are not known keeps its underscores, and a name without a known
    component comes back unchanged; compare such names by `flat`.
    """
    name = _PEFT_WRAPPER.sub(r"\1", name)
    for prefix, component in _PREFIXES:
        if match := prefix.match(name):
            path = name[match.end() :]
            if "." not in path:
                path = _unflatten(path)
            if component == "unet":
                path = _translate(path, LDM_BLOCKS, RESNET_LEAVES)
            name = f"{component}.{path}"
            break
    for pattern, replacement in _TIDY:
        name = pattern.sub(replacement, name)
    return name


def spell(names: Iterable[str], dialect: str) -> dict[str, str]:
    """Canonical name -> module name in a dialect, for all modules of one file (text encoders are numbered if two).

    `native` names what has no sure dotted name in the host (an upsampler, whose slot depends on the architecture, and
    an unknown flattened path) in kohya's way, which the host reads too.

    Raises ValueError for an unknown dialect, and in `peft` for a flattened path whose dots are not known.
    """
    if dialect not in DIALECTS:
        raise ValueError(f"dialect {quoted(dialect)} is unknown; use one of {', '.join(DIALECTS)}")
    names = list(names)
    prefixes = dict(_KOHYA_PREFIX)
    if any(name.startswith("text_encoder_2.") for name in names):
        prefixes["text_encoder"] = "lora_te1_"

    def kohya(component: str, path: str) -> str:
        return prefixes.get(component, f"{component}_" if path else component) + flat(path)

    spelled = {}
    for name in names:
        component, _, path = name.partition(".")
        dotless = component in prefixes and "_" in path and "." not in path and path not in VOCABULARY
        if dialect == "kohya":
            spelled[name] = kohya(component, path)
        elif dialect == "peft":
            if dotless:
                raise ValueError(
                    f"{shortened(name)} lost its dots in a flattened file, so its PEFT name is unknown; "
                    "save as kohya or native"
                )
            spelled[name] = name
        elif dotless or ".upsamplers." in path:
            spelled[name] = kohya(component, path)
        elif component == "unet":
            spelled[name] = "diffusion_model." + _translate(path, _TO_LDM, _TO_LDM_LEAVES)
        else:
            spelled[name] = name
    return spelled


@lru_cache(maxsize=1 << 14)
def split_key(key: str) -> tuple[str, str] | None:
    """(module as the file spells it, role from SUFFIXES) of a state-dict key, None if it is not a LoRA key."""
    match = _SUFFIX.search(key, 1)
    return (key[: match.start()], str(match.lastgroup)) if match else None


def _unflatten(path: str) -> str:
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
