"""Frozen weights kept in 8 bits under an adapter, and made wide again each time that they are used.

float8 e4m3 (arXiv 2209.05433) with a scale for each output, the largest weight of its row over 448. A weight is off by
at most a 16th of itself (above a 28,672nd of its row's largest), 2.6% in the root mean square. It is one byte in
place of two or four, kept so in the graph too: the backward pass makes the weight wide once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from .adapters import BLOCKS, blocks_of

KIND = torch.float8_e4m3fn


class Float8Layer(nn.Module):
    """What both kinds share: `codes` of 8 bits, `scales` (out, 1, …) and the dtype that the weight had."""

    codes: Tensor
    scales: Tensor
    wide: torch.dtype

    @property
    def weight(self) -> Tensor:
        return (self.codes.to(torch.float32) * self.scales).to(self.wide)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return Product.apply(x, self)


class Float8Linear(Float8Layer, nn.Linear):  # type: ignore[misc, override]
    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def pulled_back(self, gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        return gradient @ weight


class Float8Conv2d(Float8Layer, nn.Conv2d):  # type: ignore[misc, override]
    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def pulled_back(self, gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        return conv2d_input(shape, weight, gradient, self.stride, self.padding, self.dilation, self.groups)


class Product(torch.autograd.Function):
    """y = W·x + b and ∂x = Wᵀ·∂y of a frozen layer, whose weight is made wide for either and kept for neither."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return layer.product(x, layer.weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return ctx.layer.pulled_back(gradient, ctx.layer.weight.to(gradient.dtype), ctx.shape), None


STORED = {nn.Linear: Float8Linear, nn.Conv2d: Float8Conv2d}


def store_in_float8(module: nn.Module, blocks: Sequence[str] = BLOCKS) -> int:
    """Keep the frozen weights of a module's blocks (see `checkpointed`) in float8, in place; returns how many layers.

    Layers outside the blocks, such as the first and the last, keep theirs, and so do biases and norms. Call it before
    `inject_lora`, on a module that has its device and dtype. ValueError where there are no blocks, and for weights that
    are trained.
    """
    layers = [
        layer
        for block in blocks_of(module, blocks).values()
        for layer in block.modules()
        if type(layer) in STORED and getattr(layer, "padding_mode", "zeros") == "zeros"
    ]
    if any(layer.weight.requires_grad for layer in layers):
        raise ValueError(
            "these weights are trained, and float8 is for frozen ones; freeze them (requires_grad_(False))"
        )
    for layer in layers:
        weight = layer._parameters.pop("weight")
        assert weight is not None
        rows = weight.detach().float().flatten(1)
        largest = rows.abs().amax(1) / torch.finfo(KIND).max
        scales = torch.where(largest > 0, largest, 1.0).view(-1, *[1] * (weight.ndim - 1))
        layer.wide = weight.dtype  # type: ignore[assignment]
        layer.register_buffer("codes", (weight.detach().float() / scales).to(KIND))
        layer.register_buffer("scales", scales)
        layer.__class__ = STORED[type(layer)]
    return len(layers)
