"""What distillation trains: a LoRA beside a model's layers (LCM-LoRA, arXiv 2311.05556, eq. 1), or all its weights.

Either switches to the teacher's weights with `using(None)` and to the target's with `using(average)`, so that the model
is called in one way for student, teacher and target.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..lora.lowrank import Factors
from ..lora.names import canonical_name
from ..lora.vector import LoRAVector
from ..text import listed
from .identity import fingerprint

# The modules of an LCM-LoRA in a UNet: 278 in SD1.5, 423 in SSD-1B, 788 in SDXL.
LCM_TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
# Those of a transformer of images or videos: attention and feed-forward layers, of text and latents, and the output.
FLOW_TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "net.0.proj", "net.2",
    "proj_mlp", "proj_out", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3",
)  # fmt: skip
BLOCKS = (
    "resnets", "transformer_blocks", "single_transformer_blocks", "double_blocks", "single_blocks", "joint_blocks",
    "blocks", "layers",
)  # fmt: skip


class LoRAAdapter(nn.Module):
    """LoRA factors beside the linear layers and convolutions of a model, h = W₀x + (alpha/rank)·B·A·x.

    The model keeps its own weights and names. It is hooked, not changed: `using(None)` gives back the model without
    adapter, so a teacher and its student share one copy of the weights, and `remove()` ends it. The parameters are
    `down[i]` (rank, in, ...), float32 and Kaiming-uniform, drawn on the CPU whatever the device, and `up[i]`
    (out, rank, ...), zero, for the module `names[i]`. `distill` keeps averages of them there: `target`, of the
    target's, and `average`, which is the result, or None.
    """

    def __init__(
        self, module: nn.Module, sites: dict[str, nn.Linear | nn.Conv2d], ranks: Sequence[int], alpha: float | None
    ):
        super().__init__()
        self._frozen = partial(_tensors, module)
        self.names = tuple(sites)
        self.alphas = [float(rank if alpha is None else alpha) for rank in ranks]
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for site, rank in zip(sites.values(), ranks, strict=True):
            weight = site.weight
            down = torch.empty(rank, *weight.shape[1:], device="meta" if weight.is_meta else "cpu")
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            self.down.append(nn.Parameter(down.to(weight.device)))
            up = torch.zeros(weight.shape[0], rank, *[1] * (weight.ndim - 2), device=weight.device)
            self.up.append(nn.Parameter(up))
        self.target: list[Tensor] | None = None
        self.average: list[Tensor] | None = None
        self._active: Sequence[Tensor] | None = list(self.parameters())
        self._hooks = [site.register_forward_hook(partial(self._add, i)) for i, site in enumerate(sites.values())]

    def frozen(self) -> dict[str, Tensor]:
        """What is not trained: the network's parameters and buffers."""
        return self._frozen()

    def _add(self, i: int, site: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if self._active is None:
            return output
        down, up = self._active[i], self._active[len(self.names) + i]
        x = inputs[0]
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(down.dtype)
        if isinstance(site, nn.Conv2d):
            h = F.conv2d(F.conv2d(x, down, None, site.stride, site.padding, site.dilation), up)
        else:
            h = F.linear(F.linear(x, down), up)
        return output.add(h.to(output.dtype), alpha=self.alphas[i] / len(down))

    @contextmanager
    def using(self, parameters: Sequence[Tensor] | None) -> Iterator[None]:
        """The model with other factors (in the order of `parameters()`: every down, then every up), or with none."""
        before, self._active = self._active, parameters
        try:
            yield
        finally:
            self._active = before

    @cached_property
    def identity(self) -> dict[str, str]:
        """What a state of its training must share: the frozen network's fingerprint, the ranks and the alphas."""
        ranks = sorted({len(down) for down in self.down})
        return {
            "rank": ", ".join(map(str, ranks)),
            "alpha": ", ".join(f"{alpha:g}" for alpha in sorted(set(self.alphas))),
            "network": fingerprint(self.frozen()),
        }

    def remove(self) -> None:
        """Take the adapter off the model."""
        for hook in self._hooks:
            hook.remove()

    def vector(self) -> LoRAVector:
        """What was learned, the average if there is one, as a LoRAVector with canonical module names."""
        tensors = [p.detach().clone() for p in (self.average or self.parameters())]
        count = len(self.names)
        factors = map(Factors, tensors[:count], tensors[count:], self.alphas)
        return LoRAVector(dict(zip(map(canonical_name, self.names), factors, strict=True)))


class FullWeights(nn.Module):
    """All weights of a module, trained in place: a full LCM, which may take its ω as an input (`cond_proj`).

    A frozen copy of the weights as they were is the teacher's, so `using(None)` gives the model before training.
    `distill` keeps averages of them there, or None: `target`, of the target's, and `average`, which is the result.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module.requires_grad_(True)
        self.names = tuple(name for name, _ in module.named_parameters())
        self.target: list[Tensor] | None = None
        self.average: list[Tensor] | None = None
        self._teacher = [p.detach().clone() for p in module.parameters()]
        slots = defaultdict(list)
        for owner in module.modules():
            for name, p in owner._parameters.items():
                slots[p].append((owner._parameters, name))
        self._slots = [slots[p] for p in module.parameters()]

    @contextmanager
    def using(self, parameters: Sequence[Tensor] | None) -> Iterator[None]:
        """The module with other weights (in the order of `parameters()`), or with the teacher's."""
        before = list(self.parameters())
        try:
            self._place(self._teacher if parameters is None else parameters)
            yield
        finally:
            self._place(before)

    def _place(self, parameters: Sequence[Tensor]) -> None:
        for places, p in zip(self._slots, parameters, strict=True):
            for owned, name in places:
                owned[name] = p  # type: ignore[assignment]

    @cached_property
    def identity(self) -> dict[str, str]:
        """What a state of its training must share: the fingerprint of the network before training."""
        return {"network": fingerprint(self.frozen())}

    def frozen(self) -> dict[str, Tensor]:
        """What is not trained: the teacher's weights and the module's buffers."""
        return _tensors(self.module) | dict(zip(self.names, self._teacher, strict=True))

    def weights(self) -> dict[str, Tensor]:
        """What was learned, the average if there is one, by the module's own parameter names."""
        tensors = self.average or list(self.parameters())
        return {name: p.detach().clone() for name, p in zip(self.names, tensors, strict=True)}


def inject_lora(
    module: nn.Module,
    targets: Sequence[str] = LCM_TARGETS,
    rank: int = 64,
    alpha: float | None = None,
    *,
    clamp: bool = False,
) -> LoRAAdapter:
    """Put a trainable LoRA on every linear layer and convolution whose path is, or ends with, one of `targets`.

    Both its own path and its diffusers name (`keys.canonical_name`) count, so that LCM_TARGETS fit UNets in diffusers'
    and in SD's own (LDM) names. alpha None is the rank (no scaling). A layer can't have a rank above
    min(in·kh·kw, out): with `clamp` it gets that one. Raises ValueError where it would be higher, for a rank below 1,
    for grouped convolutions, and where no module matches, naming what there is.
    """
    if rank < 1:
        raise ValueError(f"rank {rank} must be at least 1; LCM-LoRAs use 64")
    candidates = {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    ends = tuple(f".{target}" for target in targets)
    sites = {name: m for name, m in candidates.items() if any(n.endswith(ends) for n in _spellings(name))}
    if not sites:
        raise ValueError(
            f"none of the targets {', '.join(targets)} ends the path of a linear layer or convolution; "
            f"this module has {listed(candidates, 8) or 'none'}"
        )
    grouped = [name for name, m in sites.items() if isinstance(m, nn.Conv2d) and m.groups > 1]
    if grouped:
        raise ValueError(f"{grouped[0]} is a grouped convolution, which LoRA does not cover; leave it out of targets")
    limits = {name: min(m.weight.shape[0], m.weight[0].numel()) for name, m in sites.items()}
    low = min(limits, key=lambda name: limits[name])
    if limits[low] < rank and not clamp:
        raise ValueError(
            f"rank {rank} is more than {low} can have, {limits[low]} (its weight is {tuple(sites[low].weight.shape)}); "
            f"use a rank of at most {limits[low]}, leave it out of targets, or clamp"
        )
    return LoRAAdapter(module, sites, [min(rank, limit) for limit in limits.values()], alpha)


def blocks_of(module: nn.Module, blocks: Sequence[str] = BLOCKS) -> dict[str, nn.Module]:
    """The members of the lists that `blocks` names, by their paths; the outer one where they are nested.

    ValueError if there are none.
    """
    member = re.compile(rf"\.(?:{'|'.join(map(re.escape, blocks))})\.\d+$")
    found: dict[str, nn.Module] = {}
    for name, block in module.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not inside and any(member.search(spelling) for spelling in _spellings(name)):
            found[name] = block
    if not found:
        names = listed([name for name, _ in module.named_children()], 8)
        raise ValueError(f"no list named {', '.join(blocks)} in this module, which has {names}; name its own")
    return found


@contextmanager
def checkpointed(module: nn.Module, blocks: Sequence[str] = BLOCKS, *, copies: bool = False) -> Iterator[None]:
    """Gradient checkpointing (arXiv 1604.06174): blocks keep their inputs alone and run again in the backward pass.

    Blocks are the members of the lists that `blocks` names in diffusers' words, such as every `resnets.0`, wherever
    they are in `module`; the outer one where they are nested. It takes a third more time in training, none without
    gradients. With `copies` a block works on copies of its inputs: one that adds to them in place, as the host's Flux
    does, must find them unchanged the second time. ValueError if there are none.
    """
    found = blocks_of(module, blocks)

    def own(value):
        return value.clone() if copies and isinstance(value, Tensor) else value

    def recomputed(forward, *args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(
            lambda: forward(*map(own, args), **{key: own(value) for key, value in kwargs.items()}), use_reentrant=False
        )

    before = {block: block.__dict__.get("forward") for block in found.values()}
    for block in before:
        block.forward = partial(recomputed, block.forward)
    try:
        yield
    finally:
        for block, forward in before.items():
            del block.forward
            if forward is not None:
                block.forward = forward


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _spellings(name: str) -> tuple[str, str]:
    return f".{name}", f".{canonical_name(name)}"
