"""A vector block by block: labels, weights, norms and cosines.

Labels of a UNet's blocks are those of the block-weight presets for Stable Diffusion, after the original UNet's
numbering: BASE (text encoders), IN00-IN11, M00, OUT00-OUT11 (SDXL ends at IN08 and OUT08), and `other` for what no
block holds (the time embedding, the last convolution). A transformer's are its own, in the original network's words
where the vector's families tell them: `double_blocks.7`, `blocks.39`, `layers.0`, `img_in`; else in diffusers'.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor

from ..text import quoted, shortened
from .lowrank import Factors
from .metadata import changed, family_names
from .names.unet import to_ldm
from .names.writing import native_path
from .vector import LoRAVector

OTHER = "other"
BLOCKS = ("BASE", *(f"IN{i:02}" for i in range(12)), "M00", *(f"OUT{i:02}" for i in range(12)))
LABELS = (*BLOCKS, OTHER)

# The blocks of a list of so many weights, as in the extension sd-webui-lora-block-weight.
PRESETS: dict[int, tuple[str, ...]] = {
    12: ("BASE", "IN04", "IN05", "IN07", "IN08", *BLOCKS[13:20]),
    17: ("BASE", "IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "M00", *BLOCKS[17:]),
    20: (*BLOCKS[:10], *BLOCKS[13:23]),
    26: BLOCKS,
}

_NATIVE = re.compile(r"(?:(input|output)_blocks\.(\d+)|middle_block)\.")
# Upsamplers have no sure native name, but close the last of a level's three blocks everywhere.
_STACK = re.compile(r"[^.]+\.(?:[a-z_]+\.)*\d+(?=\.)")
_UPSAMPLER = re.compile(r"unet\.up_blocks\.(\d+)\.upsamplers\.")


def block_of(name: str, families: Collection[str] = ()) -> str:
    """The label of a module's block, from its canonical name; `families` as in `names.writing.write_names`."""
    if name.startswith("text_encoder"):
        return "BASE"
    if name.startswith("transformer."):
        path = native_path(name, families) or name.removeprefix("transformer.")
        block = _STACK.match(path)
        return block[0] if block else path.partition(".")[0]
    if match := _UPSAMPLER.match(name):
        return f"OUT{3 * int(match[1]) + 2:02}"
    if match := _NATIVE.match(to_ldm(name.removeprefix("unet."))):
        return f"{'IN' if match[1] == 'input' else 'OUT'}{int(match[2]):02}" if match[1] else "M00"
    return OTHER


def preset_weights(values: Sequence[float], *, rest: float = 0.0) -> dict[str, float]:
    """Label -> weight from one of the community's lists.

    12 values: SDXL's BASE, IN04, IN05, IN07, IN08, M00, OUT00-OUT05
    17 values: SD1.5's BASE, IN01, IN02, IN04, IN05, IN07, IN08, M00, OUT03-OUT11
    20 values: all of SDXL: BASE, IN00-IN08, M00, OUT00-OUT08
    26 values: all of SD1.5: BASE, IN00-IN11, M00, OUT00-OUT11

    `rest` is the weight of the blocks that a list leaves out. 0 is the community's: those lists are for LoRAs without
    these blocks, and of an LCM-LoRA, which has them, they remove their convolutions; 1 keeps them.

    Raises ValueError for another number of values and for values that are not finite.
    """
    if len(values) not in PRESETS:
        raise ValueError(
            f"{len(values)} block weights; give 12 (SDXL), 17 (SD1.5), 20 (SDXL with convolutions) or "
            "26 (SD1.5 with convolutions)"
        )
    for value in (*values, rest):
        if not math.isfinite(value):
            raise ValueError(f"a block weight is {value}; weights are finite numbers, such as 0.8")
    return dict.fromkeys(BLOCKS, float(rest)) | dict(zip(PRESETS[len(values)], map(float, values), strict=True))


def scale_blocks(vector: LoRAVector, weights: Mapping[str, float]) -> LoRAVector:
    """The vector with modules, and their norm and bias differences, multiplied by the weight of a pattern.

    A pattern (`*`, `?`, `[...]`, case matters) is compared with a module's block label and canonical name, such as
    `OUT*` or `*.attn2.*`; the first that matches counts. What none matches stays, what has weight 0 is left out.

    Raises ValueError for a weight that is not finite and a pattern that matches nothing. A single block's label may
    match nothing, so that a preset fits files without some blocks, as long as something in the table matches.
    """
    if not weights:
        return vector
    names, families = dict.fromkeys([*vector.modules, *map(_module, vector.diffs)]), family_names(vector.metadata)
    weight_of: dict[str, float] = {}
    used: set[str] = set()
    for name in names:
        label = block_of(name, families)
        matching = [pattern for pattern in weights if fnmatchcase(label, pattern) or fnmatchcase(name, pattern)]
        used.update(matching)
        if matching:
            weight_of[name] = weights[matching[0]]
    lost = [pattern for pattern in weights if pattern not in used and (pattern not in LABELS or (names and not used))]
    if lost:
        labels = {block_of(name, families): None for name in names}
        raise ValueError(
            f"the pattern {quoted(lost[0])} matches nothing of this vector; it has the blocks "
            f"{', '.join(_ordered(labels)) or 'none'} and names such as {shortened(next(iter(names), 'none'))}"
        )
    scaled = {weight: vector * weight for weight in {1.0, *weights.values()}}
    modules = {name: scaled[w].modules[name] for name in vector.modules if (w := weight_of.get(name, 1.0))}
    diffs = {name: scaled[w].diffs[name] for name in vector.diffs if (w := weight_of.get(_module(name), 1.0))}
    return LoRAVector(modules, diffs, scaled[1.0].metadata)


def block_norms(vector: LoRAVector) -> dict[str, float]:
    """Label -> Frobenius norm of what the vector has in that block, in the order of LABELS, from the factors."""
    parts = _by_block(vector, family_names(vector.metadata))
    return {label: parts[label].norm() for label in _ordered(parts)}


def block_cosines(a: LoRAVector, b: LoRAVector) -> dict[str, float]:
    """Label -> cosine similarity of the two vectors in that block, for each block of either; 0 where one is zero."""
    families = family_names(changed(a.metadata, b.metadata))
    parts_a, parts_b = _by_block(a, families), _by_block(b, families)
    zero = LoRAVector()
    return {
        label: parts_a.get(label, zero).cosine(parts_b.get(label, zero)) for label in _ordered({**parts_a, **parts_b})
    }


def _by_block(vector: LoRAVector, families: Collection[str]) -> dict[str, LoRAVector]:
    modules: dict[str, dict[str, Factors]] = defaultdict(dict)
    diffs: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, factors in vector.modules.items():
        modules[block_of(name, families)][name] = factors
    for name, diff in vector.diffs.items():
        diffs[block_of(_module(name), families)][name] = diff
    return {label: LoRAVector(modules[label], diffs[label]) for label in {*modules, *diffs}}


def _ordered(labels: Mapping[str, object]) -> list[str]:
    def place(label: str) -> tuple[int, str, int]:
        stack, _, number = label.rpartition(".")
        rank = LABELS.index(label) if label in LABELS else len(LABELS)
        return (rank, stack, int(number)) if number.isdecimal() else (rank, label, 0)

    return sorted(labels, key=place)


def _module(diff: str) -> str:
    """The module of a diff's name."""
    return diff.rpartition(".")[0]
