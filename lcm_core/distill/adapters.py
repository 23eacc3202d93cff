"""Trainable LoRA on any torch module: h = W₀x + (alpha/rank)·B·A·x (LCM-LoRA, arXiv 2311.05556, eq. 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lora.keys import canonical_name
from ..lora.lowrank import Factors
from ..lora.vector import LoRAVector

# The modules of an LCM-LoRA in a diffusers UNet: 278 in SD1.5, 423 in SSD-1B, 788 in SDXL.
LCM_TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip


class LoRAAdapter(nn.Module):
    """LoRA factors beside the linear layers and convolutions of a model, which keeps its own weights and names.

    The model is hooked, not changed: `using(None)` gives back the model without adapter, so a teacher and its student
    share one copy of the weights, and `remove()` ends it. The parameters are `down[i]` (rank, in, ...), float32 and
    Kaiming-uniform, and `up[i]` (out, rank, ...), zero, for the module `names[i]`.
    """

    def __init__(self, sites: dict[str, nn.Linear | nn.Conv2d], rank: int, alpha: float):
        super().__init__()
        self.names = tuple(sites)
        self.rank, self.alpha = rank, alpha
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for site in sites.values():
            weight = site.weight
            down = torch.empty(rank, *weight.shape[1:], device=weight.device)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            self.down.append(nn.Parameter(down))
            up = torch.zeros(weight.shape[0], rank, *[1] * (weight.ndim - 2), device=weight.device)
            self.up.append(nn.Parameter(up))
        self._active: Sequence[Tensor] | None = list(self.parameters())
        self._hooks = [site.register_forward_hook(partial(self._add, i)) for i, site in enumerate(sites.values())]

    def _add(self, i: int, site: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if self._active is None:
            return output
        down, up = self._active[i], self._active[len(self.names) + i]
        x = inputs[0].to(down.dtype)
        if isinstance(site, nn.Conv2d):
            h = F.conv2d(F.conv2d(x, down, None, site.stride, site.padding, site.dilation), up)
        else:
            h = F.linear(F.linear(x, down), up)
        return output + (self.alpha / self.rank * h).to(output.dtype)

    @contextmanager
    def using(self, parameters: Sequence[Tensor] | None) -> Iterator[None]:
        """The model with other factors (in the order of `parameters()`: every down, then every up), or with none."""
        before, self._active = self._active, parameters
        try:
            yield
        finally:
            self._active = before

    def remove(self) -> None:
        """Take the adapter off the model."""
        for hook in self._hooks:
            hook.remove()

    def vector(self, parameters: Sequence[Tensor] | None = None) -> LoRAVector:
        """The factors, or `parameters` in their place, as a LoRAVector with canonical module names."""
        tensors = [p.detach().clone() for p in (self.parameters() if parameters is None else parameters)]
        pairs = zip(self.names, tensors[: len(self.names)], tensors[len(self.names) :], strict=True)
        return LoRAVector({canonical_name(name): Factors(down, up, self.alpha) for name, down, up in pairs})


def inject_lora(
    module: nn.Module, targets: Sequence[str] = LCM_TARGETS, rank: int = 64, alpha: float | None = None
) -> LoRAAdapter:
    """Put a trainable LoRA on every linear layer and convolution whose path is, or ends with, one of `targets`.

    alpha None is the rank (no scaling). Raises ValueError for a rank below 1, for grouped convolutions, and where no
    module matches, naming what there is.
    """
    if rank < 1:
        raise ValueError(f"rank {rank} must be at least 1; LCM-LoRAs use 64")
    candidates = {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    sites = {name: m for name, m in candidates.items() if any(f".{name}".endswith(f".{target}") for target in targets)}
    if not sites:
        raise ValueError(
            f"none of the targets {', '.join(targets)} ends the path of a linear layer or convolution; "
            f"this module has {', '.join(list(candidates)[:8]) or 'none'}"
        )
    grouped = [name for name, m in sites.items() if isinstance(m, nn.Conv2d) and m.groups > 1]
    if grouped:
        raise ValueError(f"{grouped[0]} is a grouped convolution, which LoRA does not cover; leave it out of targets")
    return LoRAAdapter(sites, rank, float(rank if alpha is None else alpha))
