"""LoRA files of every dialect as vectors that can be added, scaled, measured and compressed."""

from .files import read_lora, write_lora
from .keys import canonical_name, flat, spell
from .lowrank import Factors
from .vector import LoRAVector

__all__ = ["Factors", "LoRAVector", "canonical_name", "flat", "read_lora", "spell", "write_lora"]
