"""Ways to combine LoRA vectors (LCM-LoRA, arXiv 2311.05556, eq. 3) into one; the ways themselves are `methods`.

A method merges one module at a time; only as many modules' dense matrices as there are threads live at once (`Ahead`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..text import quoted, shortened
from .ahead import Ahead
from .lowrank import Factors, Limits, check_finite, checked, concatenate, decompose, truncate
from .mapping import Lazy
from .metadata import changed
from .methods import METHODS
from .terms import Merge, Site, Terms, diff_sites, diff_terms, module_sites, module_terms
from .vector import LoRAVector

NO_LIMITS = Limits()
Progress = Callable[[int, int], None]
V = TypeVar("V")


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
    lazy = combine_lazily(
        vectors,
        weights,
        method,
        limits=Limits(rank, energy, sv_ratio, sv_cumulative, conv_rank),
        dtype=dtype,
        device=device,
        progress=progress,
        **options,
    )
    modules = {name: factors for name, factors in lazy.modules.items() if factors.rank}
    diffs = {name: diff for name, diff in lazy.diffs.items() if len(diff)}
    return LoRAVector(modules, diffs, lazy.metadata)


def combine_lazily(
    vectors: Sequence[LoRAVector],
    weights: Sequence[float],
    method: str = "sum",
    *,
    limits: Limits = NO_LIMITS,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> LoRAVector:
    """`combine`, whose modules are merged when they are asked for, so that what reads them once keeps one in memory.

    A module that `combine` leaves out has factors of rank 0, a diff no values. Each access merges anew and is one of
    progress's steps.
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
    merge = METHODS[method](vectors, weights, **options)
    modules, diffs = module_sites(vectors), diff_sites(vectors)
    done = count(1)

    def maker(site: Site, terms: Terms) -> tuple[Callable[[], Factors], int]:
        def make() -> Factors:
            moved = [(i, factors.to(device=device)) for i, factors in terms]
            return _finished(site.name, moved, merge, limits, dtype).to(device=terms[0][1].down.device)

        return make, math.prod(terms[0][1].shape)

    def told(value: V) -> V:
        if progress is not None:
            progress(min(next(done), len(modules) + len(diffs)), len(modules) + len(diffs))
        return value

    def diff(site: Site) -> Tensor:
        row = told(maker(site, diff_terms(vectors, site))[0]())
        delta = (row.delta() if row.rank else row.up).flatten()
        delta = delta if dtype is None else delta.to(dtype)
        if row.rank:
            check_finite(site.name, delta)
        return delta

    sites = {site.name: site for site in modules}
    made: Mapping[str, Factors]
    if device is None or torch.device(device).type == "cpu":
        made = Ahead(sites, lambda site: maker(site, module_terms(vectors, site)))
    else:
        made = Lazy(sites, lambda site: maker(site, module_terms(vectors, site))[0]())
    return LoRAVector(
        Lazy({name: name for name in sites}, lambda name: told(made[name])),
        Lazy({site.name: site for site in diffs}, diff),
        changed(*(vector.metadata for vector in vectors), weights=METHODS[method].signs(weights)),
    )


def _finished(name: str, terms: Terms, merge: Merge, limits: Limits, dtype: torch.dtype | None) -> Factors:
    """What `merge` makes of a module, within the limits and in `dtype`; of rank 0 where the module is left out."""
    merged = merge(name, terms)
    if isinstance(merged, Tensor):
        if not all(math.isfinite(end) for end in merged.aminmax()):
            raise ValueError(
                f"Delta W of {shortened(name)} is not finite; use smaller weights, or a file without NaN or infinity"
            )
        rank = limits.rank_of(tuple(merged.shape)) or _whole_rank(terms)
        factors = decompose(merged, replace(limits, rank=rank, conv_rank=None))[0]
    elif not merged:
        rows, *rest = terms[0][1].shape
        return Factors(torch.zeros(0, *rest), torch.zeros(rows, 0, *[1] * (len(rest) - 1)), 0.0)
    elif limits == NO_LIMITS:
        return concatenate(name, merged, dtype)
    else:
        factors = truncate(concatenate(name, merged), limits)
    return checked(name, factors.to(dtype))


def _whole_rank(terms: Terms) -> int:
    shape = terms[0][1].shape
    return min(sum(factors.rank for _, factors in terms), shape[0], math.prod(shape[1:]))
