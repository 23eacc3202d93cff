"""NP-LoRA (arXiv 2511.11051): a content LoRA in the null space of a style LoRA."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch

from ..lowrank import Factors, check_shapes, truncate
from ..method import Option, method
from ..terms import Merge, Terms, scaled
from ..vector import LoRAVector

Mu = Annotated[float, Option("how strongly the directions of b are kept from a, 0 not at all", 8, 0)]
Directions = Annotated[int, Option("how many of b's main directions count in each module, 0 for all", 9, 0)]


@method(vectors=2)
def np_lora(
    vectors: Sequence[LoRAVector],
    weights: Sequence[float],
    *,
    mu: Mu = 1.0,
    directions: Directions = 0,
) -> Merge:
    """w_a·a·(I − μ/(1+μ)·V·Vᵀ) + w_b·b, V being the input directions of b, exact (NP-LoRA, arXiv 2511.11051). a is the
    content and b the style.

    V has the right singular vectors of the style's ΔW, the first `directions` of them. In the factors only the
    content's down changes, A − μ/(1+μ) (A V) Vᵀ, so its rank stays; μ = 0 is the sum, μ → ∞ the null space itself.
    """
    share = mu / (1 + mu)

    def merge(name: str, terms: Terms) -> Sequence[Factors]:
        if len(terms) == 2:
            (_, content), (_, style) = terms
            check_shapes(name, content.shape, style.shape)
            terms = [(0, _outside(content, truncate(style, directions or None), share)), (1, style)]
        return scaled(name, terms, weights)

    return merge


def _outside(content: Factors, style: Factors, share: float) -> Factors:
    """The content without `share` of what it reads along the rows of the style's down, which are orthogonal."""
    down, rows = content.down.flatten(1).double(), style.down.flatten(1).double().to(content.down.device)
    lengths = rows.norm(dim=1, keepdim=True)
    basis = rows / torch.where(lengths > 0, lengths, 1.0)
    outside = down - share * (down @ basis.T) @ basis
    return replace(content, down=outside.to(content.dtype).reshape(content.down.shape))
