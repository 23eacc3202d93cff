"""Ways to combine LoRA vectors (LCM-LoRA, arXiv 2311.05556, eq. 3) into one; the ways themselves are `methods`.

A method merges one module at a time, so never more than one module's dense matrices live at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..text import quoted, shortened
from .lowrank import Factors, Limits, check_finite, checked, concatenate, decompose, truncate
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
    sv_ratio: float | None = None,
    sv_cumulative: float | None = None,
    conv_rank: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> LoRAVector:
    """One vector from several; a module that only some of them have is zero in the others.

    method, options: one of METHODS, which say what each computes and which options it has.

    rank, energy, sv_ratio, sv_cumulative and conv_rank compress the result as `LoRAVector.compress` does, one module
    after another; of a method that makes dense Delta W, rank None is the sum of the module's ranks, at most
    min(out, in*kh*kw). dtype is the factors', None for float32 or wider. device is where the modules are merged, None
    for where the vectors are; the result is where the vectors are.
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
    limits = Limits(rank, energy, sv_ratio, sv_cumulative, conv_rank)

    merge = METHODS[method](vectors, weights, **options)
    modules: dict[str, Factors] = {}
    diffs: dict[str, Tensor] = {}
    for name, merged in _merged(vectors, merge, limits, dtype, device, progress):
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
    limits: Limits,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    progress: Progress | None,
) -> Iterator[tuple[str, Factors | Tensor]]:
    """(canonical name, factors of a module or the tensor of a diff), one after another; nothing is kept here."""
    found = module_terms(vectors)
    for done, (name, terms, shape) in enumerate(found, 1):
        home = terms[0][1].down.device
        moved = [(i, factors.to(device=device)) for i, factors in terms]
        factors = _finished(name, moved, merge, limits, dtype)
        factors = None if factors is None else factors.to(device=home)
        if factors is not None and shape is None:
            yield name, factors
        elif factors is not None and shape is not None:
            diff = factors.delta().reshape(shape)
            diff = diff if dtype is None else diff.to(dtype)
            check_finite(name, diff)
            yield name, diff
        if progress is not None:
            progress(done, len(found))


def _finished(name: str, terms: Terms, merge: Merge, limits: Limits, dtype: torch.dtype | None) -> Factors | None:
    """What `merge` makes of a module, within the limits and in `dtype`; None where the module is left out."""
    merged = merge(name, terms)
    if isinstance(merged, Tensor):
        if not torch.isfinite(merged).all():
            raise ValueError(
                f"Delta W of {shortened(name)} is not finite; use smaller weights, or a file without NaN or infinity"
            )
        rank = limits.rank_of(tuple(merged.shape)) or _whole_rank(terms)
        factors = decompose(merged, replace(limits, rank=rank, conv_rank=None))[0]
    elif not merged:
        return None
    elif limits == Limits():
        return concatenate(name, merged, dtype)
    else:
        factors = truncate(concatenate(name, merged), limits)
    return checked(name, factors.to(dtype))


def _whole_rank(terms: Terms) -> int:
    shape = terms[0][1].shape
    return min(sum(factors.rank for _, factors in terms), shape[0], math.prod(shape[1:]))
