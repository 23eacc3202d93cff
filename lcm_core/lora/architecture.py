"""What a LoRA was made for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

CONTEXT_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}
TRANSFORMERS = {"joint_blocks": "Stable Diffusion 3", "double_blocks": "Flux", "single_transformer_blocks": "Flux"}


def architecture(sizes: Mapping[str, Sequence[int | None]], metadata: Mapping[str, str]) -> str:
    """By the file's metadata, else a guess by the width of its cross-attention or its blocks; `unknown` if none fits.

    sizes: canonical name of a module or its weight -> (out, in, ...).
    """
    for key in ("modelspec.architecture", "ss_base_model_version"):
        if key in metadata:
            return metadata[key]
    widths = {size[1] for name, size in sizes.items() if name.removesuffix(".weight").endswith("attn2.to_k")}
    guesses = {CONTEXT_WIDTHS.get(width, f"context width {width}") for width in widths if width}
    guesses |= {guess for part, guess in TRANSFORMERS.items() if any(part in name for name in sizes)}
    return ", ".join(sorted(guesses)) or "unknown"
