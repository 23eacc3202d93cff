"""What a LoRA was made for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .metadata import family_names
from .names.writing import families_of

CONTEXT_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}
METADATA = ("modelspec.architecture", "ss_base_model_version")
# How the metadata of trainers and SAI's ModelSpec begins for Stable Diffusion 1.x, and for any Stable Diffusion.
SD1, SD = re.compile(r"sd_?v?1|stable-diffusion-v1", re.I), re.compile(r"sd|stable-diffusion", re.I)


def architecture(sizes: Mapping[str, Sequence[int | None]], metadata: Mapping[str, str]) -> str:
    """By the file's metadata, else a guess by its names and the width of its cross-attention; `unknown` if none fits.

    sizes: canonical name of a module or its weight -> (out, in, ...).
    """
    for key in METADATA:
        if key in metadata:
            return metadata[key]
    modules = (name.removesuffix(".weight").removesuffix(".bias") for name in sizes if name.startswith("transformer."))
    paths = [part.removeprefix("transformer.") for module in modules for part in module.split(" + ")]
    if paths:
        return " or ".join(family_names(metadata) or [family.name for family in families_of(paths)]) or "unknown"
    widths = sorted(_context_widths(sizes))
    return ", ".join(CONTEXT_WIDTHS.get(width, f"context width {width}") for width in widths) or "unknown"


def projects_by_convolution(sizes: Mapping[str, Sequence[int | None]], metadata: Mapping[str, str]) -> bool:
    """Whether `proj_in` and `proj_out` of the UNet's attention are 1x1 convolutions, as in Stable Diffusion 1.x, or
    linear, as in 2.x and SDXL: by the metadata, the width of the cross-attention, or attention in the first block,
    which SDXL lacks. Arguments as in `architecture`.
    """
    for key in METADATA:
        if SD.match(metadata.get(key, "")):
            return bool(SD1.match(metadata[key]))
    if known := _context_widths(sizes) & CONTEXT_WIDTHS.keys():
        return known == {768}
    return any(name.startswith("unet.down_blocks.0.attentions.") for name in sizes)


def _context_widths(sizes: Mapping[str, Sequence[int | None]]) -> set[int]:
    return {size[1] for name, size in sizes.items() if name.removesuffix(".weight").endswith("attn2.to_k") and size[1]}
