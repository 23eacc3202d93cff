"""Ways to combine LoRA vectors (LCM-LoRA, arXiv 2311.05556, eq. 3) into one; the ways themselves are `methods`.

A method merges one module at a time, so never more than one module's dense matrices live at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..text import quoted, shortened
from .lowrank import Factors, check_finite, check_limits, checked, concatenate, decompose, truncate
from .metadata import changed
from .methods import METHODS
from .terms import Merge, Terms, module_terms
from .vector import LoRAVector

Progress = Callable[[int, int], None]


def combine(
    vectors: Sequence[LoRAVector],
    weights: Sequence[float],
    method: str = "sum",
    *,
    rank: int | None = None,
    energy: float | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> LoRAVector:
    """One vector from several; a module that only some of them have is zero in the others.

    method, options: one of METHODS, which say what each computes and which options it has.

    rank and energy compress the result as `LoRAVector.compress` does, one module after another; of a method that makes
    dense Delta W, rank None is the sum of the module's ranks, at most min(out, in*kh*kw). dtype is the factors', None
    for float32 or wider.
    progress(done, total) is called after each module; what it raises ends the work. Metadata on which the vectors don't
    disagree is kept.

    Raises ValueError for an unknown method or option, no vectors or a number that the method does not take, weights of
    another number or not finite, an option out of its range, and modules whose shapes differ.
    """
    if method not in METHODS:
        raise ValueError(f"method {quoted(method)} is unknown; use one of {', '.join(METHODS)}")
    METHODS[method].resolved(options)
    if not vectors:
        raise ValueError("there are no vectors to combine; give at least one")
    if len(weights) != len(vectors):
        raise ValueError(f"{len(weights)} weights for {len(vectors)} vectors; give one weight for each vector")
    for weight in weights:
        if not math.isfinite(weight):
            raise ValueError(f"a weight is {weight}; weights are finite numbers, such as 0.8")
    check_limits(rank, energy)

    merge = METHODS[method](vectors, weights, **options)
    modules: dict[str, Factors] = {}
    diffs: dict[str, Tensor] = {}
    for name, merged in _merged(vectors, merge, rank, energy, dtype, progress):
        if isinstance(merged, Tensor):
            diffs[name] = merged
        else:
            modules[name] = merged
    return LoRAVector(modules, diffs, changed(*(vector.metadata for vector in vectors)))


def options_of(method: str) -> list[str]:
    """The names of a method's own options."""
    return list(METHODS[method].options)


def _merged(
    vectors: Sequence[LoRAVector],
    merge: Merge,
    rank: int | None,
    energy: float | None,
    dtype: torch.dtype | None,
    progress: Progress | None,
) -> Iterator[tuple[str, Factors | Tensor]]:
    """(canonical name, factors of a module or the tensor of a diff), one after another; nothing is kept here."""
    found = module_terms(vectors)
    for done, (name, terms, shape) in enumerate(found, 1):
        factors = _finished(name, terms, merge, rank, energy, dtype)
        if factors is not None and shape is None:
            yield name, factors
        elif factors is not None and shape is not None:
            diff = factors.delta().reshape(shape)
            diff = diff if dtype is None else diff.to(dtype)
            check_finite(name, diff)
            yield name, diff
        if progress is not None:
            progress(done, len(found))


def _finished(
    name: str, terms: Terms, merge: Merge, rank: int | None, energy: float | None, dtype: torch.dtype | None
) -> Factors | None:
    """What `merge` makes of a module, within the limits and in `dtype`; None where the module is left out."""
    merged = merge(name, terms)
    if isinstance(merged, Tensor):
        if not torch.isfinite(merged).all():
            raise ValueError(
                f"Delta W of {shortened(name)} is not finite; use smaller weights, or a file without NaN or infinity"
            )
        factors = decompose(merged, rank or _whole_rank(terms), energy)[0]
    elif not merged:
        return None
    elif rank is None and energy is None:
        return concatenate(name, merged, dtype)
    else:
        factors = truncate(concatenate(name, merged), rank, energy)
    return checked(name, factors if dtype is None else factors.to(dtype))


def _whole_rank(terms: Terms) -> int:
    shape = terms[0][1].shape
    return min(sum(factors.rank for _, factors in terms), shape[0], math.prod(shape[1:]))
