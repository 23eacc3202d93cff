"""The modules of several vectors side by side, as a combine method takes them.

A norm's or bias's difference counts as a matrix of one row and is treated as a module's Delta W in every method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..text import shortened
from .lowrank import Factors, concatenate, inner_product, wide
from .vector import LoRAVector, aligned

# A module's factors with the index of the vector that they come from; vectors without the module (zero) are left out.
Terms = Sequence[tuple[int, Factors]]
# (canonical name, terms) -> the module as factors whose sum it is (none: it is left out), or as a dense Delta W.
Merge = Callable[[str, Terms], Sequence[Factors] | Tensor]

# Beyond this cosine two directions count as one line: the great circle through them is ill-defined.
PARALLEL = 0.9995


@dataclass(frozen=True)
class Site:
    """A module or diff of several vectors: its canonical name, and (index of a vector, its name there) of each."""

    name: str
    own: tuple[tuple[int, str], ...]


def module_sites(vectors: Sequence[LoRAVector]) -> list[Site]:
    return _sites([vector.modules for vector in vectors])


def diff_sites(vectors: Sequence[LoRAVector]) -> list[Site]:
    return _sites([vector.diffs for vector in vectors])


def _sites(mappings: Sequence[Mapping[str, object]]) -> list[Site]:
    found = aligned(*({name: (i, name) for name in mapping} for i, mapping in enumerate(mappings)))
    return [Site(name, tuple(own)) for name, own in found.items()]


def module_terms(vectors: Sequence[LoRAVector], site: Site) -> Terms:
    return [(i, vectors[i].modules[name]) for i, name in site.own]


def diff_terms(vectors: Sequence[LoRAVector], site: Site) -> Terms:
    """A diff's terms as matrices of one row."""
    diffs = [(i, vectors[i].diffs[name]) for i, name in site.own]
    return [(i, Factors(d.reshape(1, -1), d.new_ones(1, 1, dtype=wide(d.dtype)), 1.0)) for i, d in diffs]


def scaled(name: str, terms: Terms, weights: Sequence[float]) -> list[Factors]:
    """Each term times its vector's weight. Raises ValueError, naming the module, where that overflows."""
    found = [replace(factors, alpha=factors.alpha * weights[i]) for i, factors in terms]
    for factors, (i, _) in zip(found, terms, strict=True):
        if not math.isfinite(factors.alpha):
            raise ValueError(
                f"weight {weights[i]} overflows alpha of {shortened(name)}; use a smaller weight, such as 0.8"
            )
    return found


def module_products(name: str, terms: Terms) -> np.ndarray:
    """<Delta W_i, Delta W_j> of a module's terms, (n, n) in float64. Errors are `inner_product`'s."""
    return _symmetric([factors for _, factors in terms], lambda a, b: inner_product(name, a, b))


def vector_products(vectors: Sequence[LoRAVector]) -> np.ndarray:
    """<tau_i, tau_j> over all modules and diffs, (n, n) in float64. Errors are `LoRAVector.dot`'s."""
    return _symmetric(vectors, LoRAVector.dot)


def sum_norm(vectors: Sequence[LoRAVector], weights: Sequence[float]) -> float:
    """Frobenius norm of sum_i w_i tau_i in float64, one module at a time: `sum_norm([a, b], [1, -1])` is a distance.

    Raises ValueError where a module's shapes differ.
    """
    total = 0.0
    for sites, terms_of in ((module_sites(vectors), module_terms), (diff_sites(vectors), diff_terms)):
        for site in sites:
            whole = concatenate(site.name, scaled(site.name, terms_of(vectors, site), weights), torch.float64)
            total += inner_product(site.name, whole, whole)
    return math.sqrt(max(total, 0.0))


def _symmetric(items: Sequence, product: Callable[..., float]) -> np.ndarray:
    found = np.zeros((len(items), len(items)))
    for i, a in enumerate(items):
        for j in range(i, len(items)):
            found[i, j] = found[j, i] = product(a, items[j])
    return found
