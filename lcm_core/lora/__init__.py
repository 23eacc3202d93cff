"""LoRA files of every dialect as vectors that can be added, scaled, combined, compressed, extracted and measured."""

from ..files import read_lora, write_lora
from .architecture import architecture
from .blocks import block_cosines, block_norms, block_of, preset_weights, scale_blocks
from .combine import combine
from .conflicts import Conflicts, conflicts
from .expression import evaluate_expression, parse_expression
from .extract import extract
from .lowrank import Factors
from .methods import METHODS
from .names import canonical_name, flat
from .names.writing import spell
from .vector import LoRAVector

__all__ = [
    "METHODS",
    "Conflicts",
    "Factors",
    "LoRAVector",
    "architecture",
    "block_cosines",
    "block_norms",
    "block_of",
    "canonical_name",
    "combine",
    "conflicts",
    "evaluate_expression",
    "extract",
    "flat",
    "parse_expression",
    "preset_weights",
    "read_lora",
    "scale_blocks",
    "spell",
    "write_lora",
]
