"""Ways to combine LoRA vectors (LCM-LoRA, arXiv 2311.05556, eq. 3) into one.

A method merges one module at a time, so never more than one module's dense matrices live at once. A norm's or bias's
difference counts as a matrix of one row and is treated as a module's Delta W in every method.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..text import listed, quoted, shortened
from .lowrank import (
    Factors,
    check_finite,
    check_limits,
    check_shapes,
    checked,
    concatenate,
    decompose,
    inner_product,
    truncate,
    wide,
)
from .metadata import changed
from .names import flat
from .vector import LoRAVector, _aligned

# A module's factors with the index of the vector that they come from; vectors without the module (zero) are left out.
Terms = Sequence[tuple[int, Factors]]
# (canonical name, terms) -> the module as factors whose sum it is (none: it is left out), or as a dense Delta W.
Merge = Callable[[str, Terms], "Sequence[Factors] | Tensor"]
Progress = Callable[[int, int], None]

MAJORITY_SIGN_METHODS = ("total", "frequency")
# Beyond this cosine slerp is linear interpolation: the great circle through two such directions is ill-defined.
PARALLEL = 0.9995


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

    sum:             sum_i w_i tau_i, exact; the rank is the sum of the ranks.
    project_out:     two vectors, w_0 (tau_0 - w_1 p), p = tau_0's component along tau_1: w_1 = 1 removes it all. Exact.
                     per_module=False takes one component over the whole vector, True one for each module.
    slerp:           two vectors a = w_0 tau_0 and b = w_1 tau_1, for each module with the angle A between them:
                     sin((1-t)A)/sin(A) a + sin(t A)/sin(A) b, t=0.5 in [0, 1]; (1-t) a + t b where |cos A| > 0.9995
                     or one is zero. Exact.
    magnitude_prune: of each Delta W only the largest `density` of the values stay; then the weighted sum.
    ties:            TIES (arXiv 2306.01708): the same pruning; then each entry is the mean of the weighted values that
                     have the majority's sign. majority_sign_method="total" (the sum's sign) or "frequency".
    dare_linear:     DARE (arXiv 2311.03099): each value of Delta W stays with chance `density`, divided by it; then the
                     weighted sum. The draw depends on `seed`, the vector's place and the module's name alone.
    dare_ties:       DARE's pruning with TIES's election and mean.

    density=0.5 is a share in (0, 1]. As in PEFT's `*_svd` combination types, weights multiply after pruning and
    election.

    rank and energy compress the result as `LoRAVector.compress` does, one module after another; where the methods
    above are not exact, rank None is the sum of the module's ranks, at most min(out, in*kh*kw). dtype is the factors',
    None for float32 or wider.
    progress(done, total) is called after each module; what it raises ends the work. Metadata on which the vectors don't
    disagree is kept.

    Raises ValueError for an unknown method or option, no vectors, weights of another number or not finite, an option
    out of its range, slerp or project_out of other than two vectors, and modules whose shapes differ.
    """
    if method not in METHODS:
        raise ValueError(f"method {quoted(method)} is unknown; use one of {', '.join(METHODS)}")
    known = options_of(method)
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(f"{method} has no option {listed(unknown)}; its options: {', '.join(known) or 'none'}")
    if not vectors:
        raise ValueError("there are no vectors to combine; give at least one")
    if len(weights) != len(vectors):
        raise ValueError(f"{len(weights)} weights for {len(vectors)} vectors; give one weight for each vector")
    for weight in weights:
        if not math.isfinite(weight):
            raise ValueError(f"a weight is {weight}; weights are finite numbers, such as 0.8")
    check_limits(rank, energy)

    merge = METHODS[method](vectors, weights, **options)

    def finished(name: str, terms: Terms) -> Factors | None:
        merged = merge(name, terms)
        if isinstance(merged, Tensor):
            if not torch.isfinite(merged).all():
                raise ValueError(
                    f"Delta W of {shortened(name)} is not finite; use smaller weights, "
                    "or a file without NaN or infinity"
                )
            factors = decompose(merged, rank or _whole_rank(terms), energy)[0]
        elif not merged:
            return None
        elif rank is None and energy is None:
            return concatenate(name, merged, dtype)
        else:
            factors = truncate(concatenate(name, merged), rank, energy)
        return checked(name, factors if dtype is None else factors.to(dtype))

    modules: dict[str, Factors] = {}
    diffs: dict[str, Tensor] = {}
    found = _terms(vectors)
    for done, (name, terms, shape) in enumerate(found, 1):
        merged = finished(name, terms)
        if merged is not None and shape is None:
            modules[name] = merged
        elif merged is not None and shape is not None:
            delta = merged.delta().reshape(shape)
            diffs[name] = delta if dtype is None else delta.to(dtype)
            check_finite(name, diffs[name])
        if progress is not None:
            progress(done, len(found))
    return LoRAVector(modules, diffs, changed(*(vector.metadata for vector in vectors)))


def sum_norm(vectors: Sequence[LoRAVector], weights: Sequence[float]) -> float:
    """Frobenius norm of sum_i w_i tau_i in float64, one module at a time: `sum_norm([a, b], [1, -1])` is a distance.

    Raises ValueError where a module's shapes differ.
    """
    total = 0.0
    for name, terms, _ in _terms(vectors):
        whole = concatenate(name, _scaled(name, terms, weights), torch.float64)
        total += inner_product(name, whole, whole)
    return math.sqrt(max(total, 0.0))


def options_of(method: str) -> list[str]:
    """The names of a method's own options."""
    parameters = inspect.signature(METHODS[method]).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def random_mask(name: str, index: int, shape: tuple[int, ...], density: float, seed: int) -> Tensor:
    """DARE's draw for a module of vector `index`: (out, in*kh*kw), True (the value stays) with chance `density`."""
    digest = hashlib.sha256(f"{seed} {index} {flat(name)}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
    return torch.rand(shape[0], math.prod(shape[1:]), generator=generator) < density


def _terms(vectors: Sequence[LoRAVector]) -> list[tuple[str, Terms, torch.Size | None]]:
    """(canonical name, terms, None) of every module, then (name, terms as matrices of one row, shape) of every diff."""
    modules = _aligned(*({name: (i, factors) for name, factors in v.modules.items()} for i, v in enumerate(vectors)))
    diffs = _aligned(*({name: (i, diff) for name, diff in v.diffs.items()} for i, v in enumerate(vectors)))
    return [
        *((name, terms, None) for name, terms in modules.items()),
        *((name, [(i, _as_row(d)) for i, d in tensors], tensors[0][1].shape) for name, tensors in diffs.items()),
    ]


def _sum(vectors: Sequence[LoRAVector], weights: Sequence[float]) -> Merge:
    return lambda name, terms: _scaled(name, terms, weights)


def _project_out(vectors: Sequence[LoRAVector], weights: Sequence[float], *, per_module: bool = False) -> Merge:
    _check_two("project_out", vectors)
    first, removed = weights
    whole = vectors[1].dot(vectors[1])
    whole_share = vectors[0].dot(vectors[1]) / whole if whole and not per_module else 0.0

    def merge(name: str, terms: Terms) -> Sequence[Factors]:
        share = whole_share
        if per_module:
            if terms[0][0] == 1:
                return []
            if len(terms) == 2:
                (_, a), (_, b) = terms
                squared = inner_product(name, b, b)
                share = inner_product(name, a, b) / squared if squared else 0.0
        return _scaled(name, terms, (first, -first * removed * share))

    return merge


def _slerp(vectors: Sequence[LoRAVector], weights: Sequence[float], *, t: float = 0.5) -> Merge:
    _check_two("slerp", vectors)
    if not 0 <= t <= 1:
        raise ValueError(f"t is {t}; it is a place in [0, 1] between the first vector and the second, such as 0.5")

    def merge(name: str, terms: Terms) -> Sequence[Factors]:
        shares = (1 - t, t)
        if len(terms) == 2:
            a, b = (LoRAVector({name: factors}) for factors in _scaled(name, terms, weights))
            cosine = a.cosine(b)
            if a.norm() and b.norm() and abs(cosine) <= PARALLEL:
                angle = math.acos(cosine)
                shares = (math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle))
        return _scaled(name, terms, [share * weight for share, weight in zip(shares, weights, strict=True)])

    return merge


def _magnitude_prune(vectors: Sequence[LoRAVector], weights: Sequence[float], *, density: float = 0.5) -> Merge:
    return _dense(weights, _keep_largest(density), _weighted_sum)


def _ties(
    vectors: Sequence[LoRAVector],
    weights: Sequence[float],
    *,
    density: float = 0.5,
    majority_sign_method: str = "total",
) -> Merge:
    return _dense(weights, _keep_largest(density), _elected_mean(majority_sign_method))


def _dare_linear(
    vectors: Sequence[LoRAVector],
    weights: Sequence[float],
    *,
    density: float = 0.5,
    seed: int = 0,
) -> Merge:
    return _dense(weights, _keep_randomly(density, seed), _weighted_sum)


def _dare_ties(
    vectors: Sequence[LoRAVector],
    weights: Sequence[float],
    *,
    density: float = 0.5,
    majority_sign_method: str = "total",
    seed: int = 0,
) -> Merge:
    return _dense(weights, _keep_randomly(density, seed), _elected_mean(majority_sign_method))


METHODS: dict[str, Callable[..., Merge]] = {
    "sum": _sum,
    "project_out": _project_out,
    "slerp": _slerp,
    "magnitude_prune": _magnitude_prune,
    "ties": _ties,
    "dare_linear": _dare_linear,
    "dare_ties": _dare_ties,
}


def _scaled(name: str, terms: Terms, weights: Sequence[float]) -> list[Factors]:
    scaled = [replace(factors, alpha=factors.alpha * weights[i]) for i, factors in terms]
    for factors, (i, _) in zip(scaled, terms, strict=True):
        if not math.isfinite(factors.alpha):
            raise ValueError(
                f"weight {weights[i]} overflows alpha of {shortened(name)}; use a smaller weight, such as 0.8"
            )
    return scaled


def _dense(
    weights: Sequence[float],
    sparsify: Callable[[str, int, Tensor], Tensor],
    merge: Callable[[Sequence[Tensor], Sequence[float]], Tensor],
) -> Merge:
    """`merge` of the sparsified Delta W, each (out, in*kh*kw)."""

    def merged(name: str, terms: Terms) -> Tensor:
        first = terms[0][1]
        sparse = []
        for i, factors in terms:
            check_shapes(name, first.shape, factors.shape)
            sparse.append(sparsify(name, i, factors.delta().flatten(1)).to(first.down.device))
        shape = max((factors.shape for _, factors in terms), key=len)
        return merge(sparse, [weights[i] for i, _ in terms]).reshape(shape)

    return merged


def _keep_largest(density: float) -> Callable[[str, int, Tensor], Tensor]:
    _check_density(density)

    def sparsify(name: str, index: int, matrix: Tensor) -> Tensor:
        if density == 1:
            return matrix
        kept, values = torch.zeros_like(matrix).flatten(), matrix.flatten()
        dropped = len(values) - int(density * len(values))
        largest = torch.from_numpy(np.argpartition(values.abs().cpu().numpy(), dropped - 1)[dropped:]).to(matrix.device)
        kept[largest] = values[largest]
        return kept.reshape(matrix.shape)

    return sparsify


def _keep_randomly(density: float, seed: int) -> Callable[[str, int, Tensor], Tensor]:
    _check_density(density)

    def sparsify(name: str, index: int, matrix: Tensor) -> Tensor:
        return matrix * random_mask(name, index, tuple(matrix.shape), density, seed).to(matrix.device) / density

    return sparsify


def _weighted_sum(matrices: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = matrices[0] * weights[0]
    for matrix, weight in zip(matrices[1:], weights[1:], strict=True):
        total = total + matrix * weight
    return total


def _elected_mean(majority_sign_method: str) -> Callable[[Sequence[Tensor], Sequence[float]], Tensor]:
    if majority_sign_method not in MAJORITY_SIGN_METHODS:
        raise ValueError(
            f"majority_sign_method {quoted(majority_sign_method)} is unknown; "
            f"use one of {', '.join(MAJORITY_SIGN_METHODS)}"
        )

    def merge(matrices: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        votes = matrices if majority_sign_method == "total" else [matrix.sign() for matrix in matrices]
        elected = _weighted_sum(votes, [1.0] * len(votes)) >= 0
        agree = [torch.where(elected, matrix > 0, matrix < 0) for matrix in matrices]
        total = _weighted_sum([matrix * agreed for matrix, agreed in zip(matrices, agree, strict=True)], weights)
        count = _weighted_sum([agreed.to(total.dtype) for agreed in agree], [1.0] * len(agree))
        return total / count.clamp(min=1)

    return merge


def _as_row(diff: Tensor) -> Factors:
    return Factors(diff.reshape(1, -1), diff.new_ones(1, 1, dtype=wide(diff.dtype)), 1.0)


def _whole_rank(terms: Terms) -> int:
    shape = terms[0][1].shape
    return min(sum(factors.rank for _, factors in terms), shape[0], math.prod(shape[1:]))


def _check_two(method: str, vectors: Sequence[LoRAVector]) -> None:
    if len(vectors) != 2:
        raise ValueError(f"{method} has {len(vectors)} vectors; it takes 2")


def _check_density(density: float) -> None:
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}; it is the share of values to keep, in (0, 1], such as 0.5")
