"""LoRAs as the host's hooks: on a conditioning or a CLIP, with a strength that may change over the steps of a sampling.

The host patches the weights anew where the strength changes.
"""

import logging
from collections.abc import Mapping

import comfy.hooks
import comfy.lora
import torch
from torch import Tensor

from ...lcm_core.lora.file import LoRAFile
from ...lcm_core.lora.module import Module
from ...lcm_core.strengths import Change, factor_at
from ...lcm_core.text import listed
from .activations import PathHook, Paths
from .lora_model import file_of, to_vector
from .loras import fitted, module_patches, parts_of, purposes
from .targets import Target, find_targets, targets_of


class StepStrength(comfy.hooks.HookKeyframeGroup):
    """The factor of a hook's strength at each step of the sampler that runs, or of `sigmas` (n + 1,) where given.

    The host's own keyframes begin at shares of the model's noise levels, which are no shares of the steps; they never
    go back; and they keep the last level of the run before, so that a run of one step may miss a change. Here the level
    alone decides.
    """

    def __init__(self, changes: tuple[Change, ...] = (), sigmas: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.changes, self.sigmas, self.factor = changes, sigmas, 1.0

    @property
    def strength(self) -> float:
        return self.factor

    def clone(self) -> "StepStrength":
        return StepStrength(self.changes, self.sigmas)

    def prepare_current_keyframe(self, curr_t, transformer_options) -> bool:
        sigmas = self.sigmas or transformer_options["sample_sigmas"].tolist()
        before, self.factor = self.factor, factor_at(self.changes, float(curr_t), sigmas)
        return self.factor != before


class VectorHook(comfy.hooks.WeightHook):
    """A LoRA of any spelling and kind, for the MODEL (`weights`) or the CLIP (`weights_clip`), a LoRAFile each."""

    def add_hook_patches(self, model, model_options, target_dict, registered) -> bool:
        on_clip = target_dict.get("target") == comfy.hooks.EnumWeightTarget.Clip
        file = self.weights_clip if on_clip else self.weights
        if file is None or not self.should_register(model, model_options, target_dict, registered):
            return False
        strength = self._strength_clip if on_clip else self._strength_model
        model.add_hook_patches(self, hook_patches(model.model, file, on_clip), strength)
        registered.add(self)
        return True


def hook_patches(model: torch.nn.Module, file: LoRAFile, on_clip: bool) -> dict:
    """The host's patches of those modules of a LoRA that are a model's, or a text encoder's; errors as of `places`."""
    patches: dict = {}
    for module, target in places(model, file, on_clip):
        for key, patch in module_patches(module, target).items():
            patches.setdefault(key, patch)
    return patches


def places(model: torch.nn.Module, file: LoRAFile, on_clip: bool = False) -> list[tuple[Module, Target]]:
    """A LoRA's modules, each with where it is in a model, or in a text encoder.

    ValueError for a LoRA that is for another architecture, or that gives a weight another shape.
    """
    key_map = comfy.lora.model_lora_keys_clip if on_clip else comfy.lora.model_lora_keys_unet
    targets = targets_of(model, key_map)
    modules, all_sizes = fitted(file, targets)
    sizes = parts_of(all_sizes)[on_clip]
    swapped = {name for name, module in modules.items() if module.spelling.swapped}
    found, misfits = find_targets(model, targets, sizes, swapped)
    both = purposes("this LoRA", file, type(getattr(model, "model_config", model)).__name__)
    if misfits:
        raise ValueError(f"{both}: {listed(misfits.values(), 1)}; use a LoRA made for this architecture")
    if not found:
        raise ValueError(f"none of the {len(sizes)} weights of the hooks' LoRA is there: {both}; use one made for it")
    if reshaped := [name for name in found if "reshape_weight" in modules[name].tensors]:
        raise ValueError(f"{both}: it gives {listed(reshaped)} another shape, which hooks can't; apply it to the model")
    if missing := {name.rpartition(".")[0] for name in sizes} - found.keys():
        logging.warning("LCM-LoRA: hooks: not in the model: %s", listed(sorted(missing)))
    return [(modules[name], target) for name, target in found.items()]


def vector_hooks(
    lora: Mapping[str, Tensor], strength: float, when: StepStrength | None, beside: bool
) -> comfy.hooks.HookGroup:
    """The host's HOOKS of any LORA_MODEL.

    when: None for one strength throughout. Text encoders have one strength always: a text is encoded before sampling.
    beside: whether the model's layers get a path beside them, and no weight is patched. ValueError if the LoRA is no
    vector then.
    """
    file, group = file_of(lora), comfy.hooks.HookGroup()
    units, texts = parts_of(file.sizes)
    if units:
        hook = PathHook(Paths(to_vector(lora), places), strength) if beside else VectorHook(strength_model=strength)
        if not beside:
            hook.weights = file
        if when is not None:
            hook.hook_keyframe = when
        group.add(hook)
    if texts:
        hook = VectorHook(strength_clip=strength)
        hook.weights_clip = file
        group.add(hook)
    return group


def changes_by_step(conditioning: list) -> bool:
    """Whether a CONDITIONING has a hook whose strength is not the same at all noise levels."""
    groups = [values["hooks"] for _, values in conditioning if values.get("hooks") is not None]
    times = [hook.hook_keyframe for group in groups for hook in group.hooks]
    return any(isinstance(each, StepStrength) or len(each.keyframes) > 1 for each in times)
