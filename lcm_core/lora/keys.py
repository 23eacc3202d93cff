"""What follows the module's name in a key of a LoRA file, and the role that its tensor has."""

from __future__ import annotations

import re
from functools import lru_cache

HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
KRONECKER = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")

# What follows the module's name in a key. A LoRA's own bias ("bias", PEFT's lora_bias) is scaled by alpha/rank, a bias
# difference ("diff_b") is not. "stray" tensors, which trainers add beside a LoRA and ComfyUI skips, are left out. The
# last four roles can't be summed as a vector.
SUFFIXES: dict[str, str] = {
    "down": r"\.lora_down\.weight|\.lora_A(?:(?:\.[^.]+)?\.weight)?"
    r"|(?:\.lora|\.lora_linear_layer|_lora|(?<=_lora[12]))\.down\.weight",
    "up": r"\.lora_up\.weight|\.lora_B(?:(?:\.[^.]+)?\.weight)?"
    r"|(?:\.lora|\.lora_linear_layer|_lora|(?<=_lora[12]))\.up\.weight",
    "mid": r"\.lora_mid\.weight",
    "bias": r"\.lora_B(?:\.[^.]+)?\.bias",
    "alpha": r"\.alpha",
    "diff": r"\.diff|\.w_norm",
    "diff_b": r"\.diff_b|\.b_norm",
    **{role: rf"\.{role}(?:\.[^.]+)?" for role in HADAMARD + KRONECKER},
    "stray": r"\.diff_m|_norm\.scale",
    "DoRA": r"\.dora_scale|\.lora_magnitude_vector(?:\.[^.]+)*",
    "GLoRA": r"\.(?:[ab][12]|bm)\.weight",
    "OFT": r"\.b?oft_\w+(?:\.\w+)*|\.rescale",
    "replacement": r"\.set_weight|\.reshape_weight",
}
_SUFFIX = re.compile(r"(?=[._])(?:" + "|".join(f"(?P<{role}>{suffix})" for role, suffix in SUFFIXES.items()) + r")\Z")


@lru_cache(maxsize=1 << 14)
def split_key(key: str) -> tuple[str, str] | None:
    """(module as the file spells it, role from SUFFIXES) of a state-dict key, None if it is not a LoRA key."""
    match = _SUFFIX.search(key, 1)
    return (key[: match.start()], str(match.lastgroup)) if match else None
