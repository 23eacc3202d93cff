"""What a node is given: checked against its schema before it executes, for all nodes alike, and numbers out of texts.

The host checks the types of links and the ranges of literals. A literal in place of a link reaches the node, a linked
number may lie outside its widget's range, and old hosts take any word for a choice.
"""

import math
import re
from collections.abc import Mapping
from functools import wraps
from numbers import Integral, Real

from comfy_api.latest import io
from torch import Tensor

from ..lcm_core.text import listed, quoted

MOST_IMAGES = 4096  # in a batch: the most that the host's EmptyLatentImage makes
MOST_CHARACTERS = 100_000  # of a text: a seed of 20 digits for each image


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, which now raises a ValueError that names the input before anything is made of a wrong one."""
    execute = vars(node)["execute"].__func__

    @wraps(execute)
    def check_and_execute(cls, **given):
        schema = cls.define_schema()
        if unknown := given.keys() - {declared.id for declared in schema.inputs}:
            raise ValueError(f"{schema.display_name} has no input {listed(map(quoted, unknown))}; leave it out")
        for declared in schema.inputs:
            if declared.id in given:
                for value in given[declared.id] if schema.is_input_list else [given[declared.id]]:
                    check(declared, value)
        return execute(cls, **given)

    node.execute = classmethod(check_and_execute)
    return node


def check(declared: io.Input, value: object, within: str = "") -> None:
    """ValueError unless the value is what the declared input takes; None is for an optional input that has none."""
    if value is None and (declared.optional or within):
        return
    name, kind = within or declared.id, declared.get_io_type()
    if kind == "COMFY_AUTOGROW_V3":
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} is {quoted(value)}; connect vectors to its sockets")
        for part, item in value.items():
            check(declared.template.input, item, f"{name}.{part}")
    elif kind == "INT":
        if isinstance(value, bool) or not isinstance(value, Integral) or value < declared.min:
            raise ValueError(f"{name} is {quoted(value)}; it must be a whole number of {declared.min} or more")
    elif kind == "FLOAT":
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"{name} is {quoted(value)}; it must be a finite number, such as {declared.default}")
    elif kind == "BOOLEAN":
        if value not in (True, False):
            raise ValueError(f"{name} is {quoted(value)}; it must be true or false")
    elif kind == "STRING":
        check_text(name, value)
    elif kind == "COMBO":
        if value not in declared.options:
            choices = f"choose one of {listed(declared.options, 8)}" if declared.options else "its folder has no file"
            raise ValueError(f"{name} has no choice {quoted(value)}; {choices}")
    elif kind in LINKED and not LINKED[kind](value):
        found = quoted(value) if isinstance(value, str | int | float | list | dict | None) else type(value).__name__
        raise ValueError(f"{name} is no {kind} but {found}; connect the {kind} output of another node")
    elif kind == "LATENT":
        check_latent(name, value)


def check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {quoted(value)}; it must be a text")
    if len(value) > MOST_CHARACTERS:
        raise ValueError(f"{name} has {len(value):,} characters; shorten it to {MOST_CHARACTERS:,} or fewer")
    if value.isprintable():
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:
        broken = value[error.start : error.start + 1]
        raise ValueError(f"{name} has {quoted(broken)}, half of a character; write that character anew") from error


def is_conditioning(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(e, list | tuple) and len(e) > 1 and isinstance(e[1], dict) for e in value)
    )


def is_lora(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in value.items()
    )


LINKED = {
    "MODEL": lambda value: hasattr(value, "get_model_object") and hasattr(value, "add_object_patch"),
    "CLIP": lambda value: hasattr(value, "patcher") and hasattr(value, "tokenize"),
    "CONDITIONING": is_conditioning,
    "LATENT": lambda value: isinstance(value, Mapping) and hasattr(value.get("samples"), "is_nested"),
    "LORA_MODEL": is_lora,
    "SIGMAS": lambda value: isinstance(value, Tensor) and value.ndim == 1 and bool(value.isfinite().all()),
    "HOOKS": lambda value: hasattr(value, "clone_and_combine"),
    "IMAGE": lambda value: isinstance(value, Tensor) and value.ndim == 4,
}


def check_latent(name: str, latent: Mapping) -> None:
    """ValueError for latents without images or with values that are not finite, and for a mask or batch_index amiss."""
    samples, mask, indices = latent["samples"], latent.get("noise_mask"), latent.get("batch_index")
    if samples.is_nested:
        return
    if samples.ndim < 3 or samples.numel() == 0:
        raise ValueError(f"{name} has samples of shape {tuple(samples.shape)}; give at least one latent image")
    if not (samples.is_floating_point() and samples.isfinite().all()):
        raise ValueError(f"{name} has NaN, infinite or whole values; look at what the node before it was given")
    if mask is not None and not (isinstance(mask, Tensor) and mask.numel() and mask.isfinite().all()):
        raise ValueError(f"{name} has a noise mask that is empty or not finite; give one of values in 0 … 1")
    if indices is not None and not (
        isinstance(indices, list | tuple)
        and len(indices) == len(samples)
        and all(isinstance(i, int) and i >= 0 for i in indices)
    ):
        raise ValueError(
            f"{name} has batch_index {quoted(indices)} for {len(samples)} images; give each a whole number of 0 or more"
        )


def numbers(name: str, text: str, kind: type[int] | type[float] = float, most: int = MOST_IMAGES) -> list:
    """The numbers of a text like "999, 759, 499, 259"; ValueError for a word that is not one, or more than `most`."""
    words = text.replace(",", " ").split()
    if len(words) > most:
        raise ValueError(f"{name} has {len(words):,} numbers and takes {most:,} at most; leave the others out")
    return [_number(name, word, kind) for word in words]


def _number(name: str, word: str, kind: type[int] | type[float]) -> int | float:
    if kind is int:
        if re.fullmatch(r"[+-]?[0-9]{1,20}", word):
            return int(word)
        raise ValueError(
            f"{name} has {quoted(word)} and takes whole numbers of up to 20 digits; write such ones, as in 999, 759"
        )
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name} has {quoted(word)} and takes finite numbers; write such ones, as in 0.8, 1")
    return value
