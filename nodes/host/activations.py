"""LoRA vectors beside a model's layers and not in their weights: h = W₀·x + λ·(α/r)·B·A·x (arXiv 2311.05556, eq. 1).

No weight is touched, so another λ costs nothing and λ = 0 saves the work; each evaluation has the paths' own products.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import comfy.hooks
import torch
from comfy.patcher_extension import WrappersMP, merge_nested_dicts
from torch import Tensor

from ...lcm_core.lora import LoRAVector
from ...lcm_core.lora.file import LoRAFile
from ...lcm_core.lora.module import Module
from ...lcm_core.text import shortened
from .targets import Target

REMEDY = "choose weights for applied_to"


@dataclass(frozen=True, eq=False)
class Path:
    """ΔW = up·down of a layer: down (r, in) or (r, in, *kernel), up (out, r) with α/r in it.

    part: (axis, start, length) of the rows (axis 0) or columns (axis 1) of the layer's weight that it is of.
    """

    layer: torch.nn.Module
    down: Tensor
    up: Tensor
    part: tuple[int, int, int] | None

    def __call__(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """ΔW·x for the layer's input, with the factors in its dtype."""
        if self.is_convolution:
            inner = self.layer._conv_forward(x, down, None)
            return (up @ inner.flatten(2)).unflatten(2, inner.shape[2:])
        if self.part and self.part[0] == 1:
            x = x.narrow(-1, *self.part[1:])
        return torch.nn.functional.linear(torch.nn.functional.linear(x, down), up)

    @property
    def is_convolution(self) -> bool:
        return hasattr(self.layer, "kernel_size")

    def add(self, output: Tensor, change: Tensor) -> Tensor:
        if not (self.part and self.part[0] == 0):
            return output + change
        output = output.clone()
        output.narrow(1 if self.is_convolution else -1, *self.part[1:]).add_(change)
        return output


class Paths:
    """The paths of a vector in each model that it meets, and their factors in the dtypes and on the devices in use."""

    def __init__(
        self, vector: LoRAVector, find: Callable[[torch.nn.Module, LoRAFile], list[tuple[Module, Target]]]
    ) -> None:
        """find(model, file) -> the file's modules, each with its target.

        ValueError for a vector with whole differences.
        """
        if vector.diffs:
            raise ValueError(
                f"the vector has {len(vector.diffs)} whole differences, such as {shortened(next(iter(vector.diffs)))}, "
                f"which are no path beside a layer; {REMEDY}"
            )
        self.file = LoRAFile.of(vector.state_dict("native"))
        self.find = find
        self.found: WeakKeyDictionary = WeakKeyDictionary()
        self.cast: dict[tuple, tuple[Tensor, Tensor]] = {}

    def of(self, model: torch.nn.Module) -> list[Path]:
        if model not in self.found:
            found = self.find(model, self.file)
            self.found[model] = [path_at(model, target, module) for module, target in found]
        return self.found[model]

    def to(self, target: Any) -> "Paths":
        """The host calls it before and after a sampling; the factors that were made for one are dropped."""
        self.cast.clear()
        return self

    def factors(self, path: Path, x: Tensor) -> tuple[Tensor, Tensor]:
        key = (path, x.device, x.dtype)
        if key not in self.cast:
            self.cast[key] = path.down.to(x), path.up.to(x)
        return self.cast[key]

    def run(self, strength: float, executor, *args, **kwargs):
        """A wrapper of the host's apply_model: the evaluation with strength·ΔW on every layer."""
        if not strength:
            return executor(*args, **kwargs)

        reached = set()

        def beside(path: Path, layer, given: tuple, output: Tensor) -> Tensor:
            reached.add(path)
            return path.add(output, strength * path(given[0], *self.factors(path, given[0])))

        handles = []
        try:
            for each in self.of(executor.class_obj):
                handles.append(each.layer.register_forward_hook(partial(beside, each)))
            made = executor(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        if not reached:
            raise ValueError(f"the model was evaluated without any of the {len(handles)} layers of a path; {REMEDY}")
        return made


def path_at(model: torch.nn.Module, target: Target, module: Module) -> Path:
    """A plain LoRA's module at its place. ValueError where there is no layer, or a grouped convolution."""
    key, part, *function = (target, None) if isinstance(target, str) else target
    layer = model.get_submodule(key.removesuffix(".weight"))
    kernel = getattr(layer, "kernel_size", ())
    if not (kernel or hasattr(layer, "in_features")) or getattr(layer, "groups", 1) != 1:
        raise ValueError(
            f"{shortened(key)} is a {type(layer).__name__} and takes no path beside it, which linear layers and "
            f"convolutions without groups do; {REMEDY}"
        )
    down, up = module.need("down", "up")
    scaled = module.scale(len(down)) * up.flatten(1).float()
    for change in function:
        scaled = change(scaled)
    return Path(layer, down.reshape(len(down), -1, *kernel), scaled, part)


class PathHook(comfy.hooks.TransformerOptionsHook):
    """`Paths` on the conditionings that have the hook, with the strength of its keyframes."""

    def __init__(self, paths: Paths | None = None, strength: float = 1.0) -> None:
        super().__init__(hook_scope=comfy.hooks.EnumHookScope.HookedOnly)
        self.paths, self.whole = paths, strength

    def clone(self) -> "PathHook":
        copy = super().clone()
        copy.paths, copy.whole = self.paths, self.whole
        return copy

    def add_hook_patches(self, model, model_options, target_dict, registered) -> bool:
        if not self.should_register(model, model_options, target_dict, registered):
            return False
        if is_compiled(model):
            raise ValueError(
                f"the model is compiled, and a compiled one may pass by a path beside its layers; {REMEDY}"
            )
        self.paths.of(model.model)
        merge_nested_dicts(model_options, {"to_load_options": wrapping(self.paths)}, copy_dict1=False)
        registered.add(self)
        return True

    def on_apply_hooks(self, model, transformer_options) -> None:
        run = partial(self.paths.run, self.whole * self.strength)
        merge_nested_dicts(transformer_options, wrapping(run), copy_dict1=False)


def is_compiled(model) -> bool:
    """Whether core's TorchCompileModel, or another node, compiles a MODEL or parts of it."""
    layers = model.get_model_object("diffusion_model").modules()
    return "torch_compile_kwargs" in model.model_options or any(hasattr(layer, "_orig_mod") for layer in layers)


def wrapping(wrapper: Callable) -> dict:
    return {"wrappers": {WrappersMP.APPLY_MODEL: {"lcm_lora_paths": [wrapper]}}}
