"""Where the modules of a LoRA are in a model of the host, for every spelling of every architecture.

The host's key map says which weight each name means. Its names are read as a file's are, so a LoRA in any spelling
finds the weight, and the parts of a fused weight find their rows.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import accumulate
from weakref import WeakKeyDictionary

import comfy.utils
import torch
from torch import Tensor

from ...lcm_core.lora.fusion import part_rows
from ...lcm_core.lora.kinds import Size
from ...lcm_core.lora.names import flat, read_names
from ...lcm_core.text import shortened

# A weight's key; or with its rows (axis, start, length), and what is done to the difference before it is added.
Target = str | tuple[str, tuple[int, int, int] | None] | tuple[str, tuple[int, int, int] | None, Callable]

_FOUND: WeakKeyDictionary[torch.nn.Module, dict[str, Target]] = WeakKeyDictionary()


def exchange_halves(delta: Tensor) -> Tensor:
    return delta.roll(len(delta) // 2, 0)


def targets_of(model: torch.nn.Module, key_map: Callable[[torch.nn.Module, dict], dict]) -> dict[str, Target]:
    """`model_targets` by a key map function of the host, made once for a model: they stay the same as long as it is."""
    if model not in _FOUND:
        _FOUND[model] = model_targets(model, key_map(model, {}))
    return _FOUND[model]


def model_targets(model: torch.nn.Module, key_map: Mapping[str, str | tuple]) -> dict[str, Target]:
    """Canonical name of a module, flattened, or of all parts of a fused one -> its weight, or its rows of one."""
    found: dict[str, Target] = {}
    rows: dict[str, Target] = {}
    for name, spelling in read_names(key_map).items():
        target = key_map[name]
        key, offset, *_ = (target, None) if isinstance(target, str) else target
        whole = flat(spelling.name)
        if len(spelling.parts) == 1:
            exchanged = spelling.swapped and isinstance(target, str) and _is_two_to_one(model, key)
            found.setdefault(whole, (key, None, exchange_halves) if exchanged else (key, offset) if offset else key)
            continue
        found.setdefault(whole, (key, offset) if offset else key)
        shape = weight_shape(model, key)
        if offset is None and shape:
            rows_of = part_rows(name, len(spelling.parts), *_size(shape))
            starts = accumulate(rows_of, initial=0)
            rows |= {
                flat(part): (key, (0, start, length))
                for part, start, length in zip(spelling.parts, starts, rows_of, strict=False)
            }
    return found | rows


def find_targets(
    model: torch.nn.Module,
    targets: Mapping[str, Target],
    sizes: Mapping[str, Size],
    swapped: Collection[str] = (),
) -> tuple[dict[str, Target], dict[str, str]]:
    """(canonical name of a LoRA's module -> where it is, of those in `sizes` that the model has; name -> what differs,
    of those that are of another size there).

    targets: as of `model_targets`. sizes: as of `LoRAFile`. swapped: names of the modules whose halves are exchanged.
    """
    found: dict[str, Target] = {}
    misfits: dict[str, str] = {}
    for parameter, size in sizes.items():
        name, _, kind = parameter.rpartition(".")
        target = targets.get(flat(name))
        if target is None:
            continue
        key, offset, *function = (target, None) if isinstance(target, str) else target
        if (packed := _packed(model, key)) is not None:
            raise ValueError(
                f"the model's {shortened(key)} is packed as {packed.dtype} {tuple(packed.shape)}, and no LoRA can be "
                "added to that; load the model in a floating-point format, such as fp8 or bf16"
            )
        have = _size(weight_shape(model, key, kind), offset)
        if not have or any(a not in (None, b) for a, b in zip(size, have, strict=True)):
            misfits[name] = (
                f"{shortened(parameter)} is {size} in the LoRA and {have or 'missing'} in the model, as (out, in)"
            )
            continue
        if name in swapped and _is_two_to_one(model, key):
            target = (key, offset) if function else (key, offset, exchange_halves)
        found[name] = target
    return {name: target for name, target in found.items() if name not in misfits}, misfits


def _is_two_to_one(model: torch.nn.Module, key: str) -> bool:
    shape = weight_shape(model, key)
    return len(shape) > 1 and shape[0] == 2 * math.prod(shape[1:])


def _size(shape: Sequence[int], rows: tuple[int, int, int] | None = None) -> tuple[int, int] | tuple[()]:
    """(out, in) of a weight of this shape, or of its rows; () if there is none."""
    if not shape:
        return ()
    lengths = list(shape)
    if rows is not None:
        lengths[rows[0]] = rows[2]
    return lengths[0], math.prod(lengths[1:])


def weight_shape(model: torch.nn.Module, key: str, kind: str = "weight") -> tuple[int, ...]:
    """The shape of the weight that a key of the host names, or of the bias beside it; () if there is none that tells.

    A linear layer tells its own, whatever its weight is packed into or a patch has padded it to.
    """
    name, _, last = key.rpartition(".")
    if last != "weight":
        return tuple(comfy.utils.get_attr(model, key).shape) if kind == "weight" else ()
    layer = comfy.utils.get_attr(model, name)
    if getattr(layer, kind, None) is None:
        return ()
    if hasattr(layer, "out_features") and hasattr(layer, "in_features"):
        return (layer.out_features, layer.in_features) if kind == "weight" else (layer.out_features,)
    return () if _packed(model, key) is not None else tuple(getattr(layer, kind).shape)


def _packed(model: torch.nn.Module, key: str) -> Tensor | None:
    """The weight that a key names, if it is of whole numbers that say nothing of its shape, as 4-bit ones."""
    weight = comfy.utils.get_attr(model, key)
    return None if weight.is_floating_point() or weight.shape != torch.Tensor.size(weight) else weight
