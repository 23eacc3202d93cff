"""What several nodes for LoRA vectors have in common: inputs, outputs, and how a vector is described."""

import copy
import dataclasses
import string
from collections.abc import Mapping, Sequence

from comfy_api.latest import io
from torch import Tensor

from ..lcm_core.lora import LoRAVector
from ..lcm_core.option import Option
from .checks import numbers

CATEGORY = "LCM-LoRA/vectors"
STEP = 0.01
# Whether the host has inputs that grow by a socket as each is connected.
GROWS = hasattr(io, "Autogrow")
LETTERS = string.ascii_lowercase
RANK = io.Int.Input(
    "rank", default=0, min=0, max=4096,
    tooltip="The largest rank of a module in the result, such as 64. 0 keeps all.",
)  # fmt: skip
ENERGY = io.Float.Input(
    "energy", default=1.0, min=0.01, max=1.0, step=0.001, round=0.0001,
    tooltip="The share of each module's squared norm that is enough, such as 0.99: more ranks than that are dropped. "
    "1 drops nothing.",
)  # fmt: skip
LEAVE_OUT = io.Boolean.Input(
    "leave_out_misfits", default=False, optional=True,
    tooltip="On: what fits of a LoRA for a somewhat different model is applied, the rest named. Off refuses it.",
)  # fmt: skip


def expert(declared: io.Input) -> io.Input:
    """The input, which front ends with a section for advanced inputs show there."""
    declared = copy.copy(declared)
    declared.extra_dict = {**(declared.extra_dict or {}), "advanced": True}
    return declared


def aliases(*words: str) -> dict[str, list[str]]:
    """The words by which a node is found too, as io.Schema takes them where the host has such."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return {"search_aliases": list(words)} if "search_aliases" in known else {}


def weight_input(name: str, default: float, tooltip: str):
    return io.Float.Input(name, default=default, min=-10.0, max=10.0, step=0.01, tooltip=tooltip)


def lambda_input(name: str, default: float, tooltip: str):
    return io.Float.Input(
        name, default=default, min=-2.0, max=2.0, step=0.01, display_mode=io.NumberDisplay.slider, tooltip=tooltip
    )


def vector_input(name: str, tooltip: str, optional: bool = False):
    return io.LoraModel.Input(name, optional=optional, tooltip=tooltip)


def vector_outputs():
    return [io.LoraModel.Output(display_name="lora"), io.String.Output(display_name="report")]


def more_vectors(first: str):
    """An input `more` of sockets from the letter `first` to z, where the host has such; else none."""
    if not GROWS:
        return []
    names = list(LETTERS[LETTERS.index(first) :])
    template = io.Autogrow.TemplateNames(vector_input("vector", "One more vector."), names=names, min=0)
    tooltip = f"More vectors, {first} to z: with each that is connected comes a socket for the next."
    return [io.Autogrow.Input("more", template=template, optional=True, tooltip=tooltip)]


def more_weights_input(name: str, first: str):
    tooltip = f"The weights of the vectors from {first} on, such as 0.5, 1. Empty: 1 each. Only newer hosts have them."
    return io.String.Input(name, default="", optional=True, tooltip=tooltip)


def more_terms(name: str, more: Mapping[str, Mapping[str, Tensor]] | None, weights: str):
    """letter -> (lora, weight) of the connected sockets of `more`.

    ValueError where the text has other than a weight for each.
    """
    loras = {letter: lora for letter, lora in sorted((more or {}).items()) if lora is not None}
    given = numbers(name, weights) or [1.0] * len(loras)
    if len(given) != len(loras):
        raise ValueError(
            f"{name} has {len(given)} numbers for {len(loras)} further vectors; write one for each, or leave it empty"
        )
    return {letter: (lora, weight) for (letter, lora), weight in zip(loras.items(), given, strict=True)}


def option_input(name: str, option: Option, default: bool | int | float | str, users: Sequence[str], optional: bool):
    """The widget of an option of a method or an objective; optional where older graphs lack it."""
    common = {"default": default, "optional": optional, "tooltip": f"{', '.join(users)}: {option.about}."}
    low, high = option.minimum or 0, option.maximum
    if option.choices:
        return io.Combo.Input(name, options=list(option.choices), **common)
    if isinstance(default, bool):
        return io.Boolean.Input(name, **common)
    if isinstance(default, int):
        common["control_after_generate"] = False
        return io.Int.Input(name, min=low, max=2**64 - 1 if high is None else high, **common)
    if option.above:
        low += STEP
    return io.Float.Input(name, min=low, max=1_000_000.0 if high is None else high, step=STEP, **common)


def limits(rank: int, energy: float) -> dict[str, int | float | None]:
    """RANK's and ENERGY's values as `LoRAVector.compress` takes them."""
    return {"rank": rank or None, "energy": energy if energy != 1 else None}


def size(vector: LoRAVector, norm: float | None = None) -> str:
    norm = vector.norm() if norm is None else norm
    return f"{len(vector)} modules, rank {vector.rank}, {vector.parameters:,} parameters, norm {norm:.4g}"
