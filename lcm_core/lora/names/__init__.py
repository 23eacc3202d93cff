"""One canonical name for a module, whatever program wrote it and whatever network it is of.

Canonical names are `<component>.<dotted path>`: a UNet's and a CLIP text encoder's paths are diffusers'
(`unet.mid_block.resnets.0.conv1`), a transformer's are those that `family` explains, and other text encoders', whose
components are called by their kind, those of transformers (see `encoders`). Weights that fuse q, k and v are
split: the parts' rows are a fused LoRA's own, exactly and of the same rank, with one `down` for all, while fusing LoRAs
of the parts triples the rank and fills it with zeros. So norms, cosines and pruning see what was trained, compressing
ranks a projection by itself, and a vector that came fused is saved fused as small as it was.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache

from .encoders import encoder_path
from .family import BESIDE
from .table import canonical_paths, dotted_path, families_with, is_shared, shared_path
from .unet import to_diffusers, unflatten

_UNET_HEADS = (
    r"(?:(?:down|up|input|output)_blocks|mid_block|middle_block|time_embed|time_embedding|add_embedding|label_emb|out)\."
    r"|(?:conv_in|conv_out|conv_norm_out)$"
)
_CLIP_HEADS = r"encoder\.layers\.\d+\.(?:self_attn|mlp|layer_norm)|embeddings\.\w+_embedding$|final_layer_norm$"
_PREFIXES = tuple(
    (re.compile(prefix), component)
    for prefix, component in (
        (r"(?:model\.)?diffusion_model\.", "unet"),
        (r"unet\.", "unet"),
        (r"transformer\.|lora_transformer_", "transformer"),
        (r"lora_unet__?|lycoris_", "unet"),
        (r"lora_te1?_", "text_encoder"),
        (r"lora_te2_", "text_encoder_2"),
        (r"lora_te3_", "text_encoder_3"),
        (r"text_encoder\.", "text_encoder"),
        (r"text_encoder_2\.", "text_encoder_2"),
        (r"text_encoder_3\.", "text_encoder_3"),
        (r"(?:text_encoders\.)?clip_[lh]\.transformer\.", "text_encoder"),
        (r"(?:text_encoders\.)?clip_g\.transformer\.", "text_encoder_2"),
        (r"text_encoders\.(?!qwen3_2b\.)(?:\w+\.)?transformer\.", "text_encoders"),
        (rf"(?=text_model\.|{_CLIP_HEADS})", "text_encoder"),
        (rf"(?={_UNET_HEADS})", "unet"),
    )
)
_PEFT_WRAPPER = re.compile(r"^((?:unet|text_encoder|text_encoder_[23]|transformer)\.)?base_model\.model\.")
_TIDY = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\.processor\.(to_[qkv]|to_out)", r".\1"),
        (r"^(text_encoder(?:_2)?\..*\.self_attn)\.to_([qkv])$", r"\1.\2_proj"),
        (r"^(text_encoder(?:_2)?\..*\.self_attn)\.to_out$", r"\1.out_proj"),
        (r"^(unet\..*)\.to_out$", r"\1.to_out.0"),
        (rf"^(text_encoder(?:_2)?)\.(?={_CLIP_HEADS})", r"\1.text_model."),
    )
)


@dataclass(frozen=True)
class Spelling:
    """What a module's name in a file stands for.

    parts: its canonical names; several are those whose rows a fused weight holds one after another.
    swapped: whether the halves of its rows are exchanged, where it has twice as many rows as columns.
    dotted: the name with its dots, and without a wrapper's prefix.
    """

    parts: tuple[str, ...]
    swapped: bool
    dotted: str

    @property
    def name(self) -> str:
        return " + ".join(self.parts)


@lru_cache(maxsize=1 << 16)
def read_name(name: str) -> Spelling:
    """What a module path in any spelling stands for (without `.weight` or a LoRA suffix).

    A flattened path of an architecture whose words are not known keeps its underscores, and a name without a known
    component comes back unchanged; compare such names by `flat`.
    """
    name = _PEFT_WRAPPER.sub(r"\1", name)
    component, path = _component(name)
    if component in ("", "unet", "transformer") and (paths := canonical_paths(path)):
        parts = tuple(f"transformer.{each.removeprefix('~')}" for each in paths)
        dotted = dotted_path(path)
        return Spelling(
            parts, paths[0].startswith("~"), dotted if dotted.startswith(BESIDE) else f"transformer.{dotted}"
        )
    if component.startswith("text_encoder") and (found := encoder_path(path)):
        return Spelling((".".join(found),), False, f"{component}.{found[1]}")
    if component and component not in ("text_encoders", "text_encoder_3"):
        path = path if "." in path else unflatten(path)
        name = f"{component}.{to_diffusers(path) if component == 'unet' else path}"
    for pattern, replacement in _TIDY:
        name = pattern.sub(replacement, name)
    return Spelling((name,), False, name)


def _component(name: str) -> tuple[str, str]:
    """(what a module is of, "" if its name does not tell, its path in it)."""
    for prefix, component in _PREFIXES:
        if match := prefix.match(name):
            return component, name[match.end() :]
    return "", name


def read_names(names: Iterable[str], families: Collection[str] = ()) -> dict[str, Spelling]:
    """`read_name` of every module of one file or model.

    A path that networks have for different layers is of the network that the other names tell, or else `families`.
    """
    found = {name: read_name(name) for name in names}
    shared = {name: path for name in found if is_shared(path := _transformer_path(name))}
    if not shared:
        return found
    told = families_with((spelling.dotted for name, spelling in found.items() if name not in shared), {}) or families
    for name, path in shared.items():
        if reading := shared_path(path, told):
            dotted, paths = reading
            parts = tuple(f"transformer.{each.removeprefix('~')}" for each in paths)
            found[name] = Spelling(parts, paths[0].startswith("~"), f"transformer.{dotted}")
    return found


@lru_cache(maxsize=1 << 16)
def _transformer_path(name: str) -> str:
    """A module's path in what may be a transformer; "" if it is another's."""
    name = _PEFT_WRAPPER.sub(r"\1", name)
    component, path = _component(name)
    return path if component in ("", "unet", "transformer") else ""


def canonical_name(name: str) -> str:
    """The canonical name of a module path in any spelling; of a fused weight its parts' names with + between."""
    return read_name(name).name


def flat(name: str) -> str:
    """The name with its dots as underscores: equal for the flattened and the dotted spelling of one module."""
    return name.replace(".", "_")
