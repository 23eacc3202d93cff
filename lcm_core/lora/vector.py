"""LoRA files as vectors (LCM-LoRA, arXiv 2311.05556, eq. 2–3): tau'_LCM = lambda1 * tau' + lambda2 * tau_LCM.

A vector holds per module the factors of Delta W = alpha/rank * up @ down (eq. 1). Sums concatenate factors, so they are
exact for different ranks and alphas and cost no dense matrix.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TypeVar

import torch
from torch import Tensor

from ..files import write_lora
from ..text import shortened
from .lowrank import (
    Factors,
    Limits,
    check_finite,
    check_shapes,
    check_size,
    checked,
    concatenate,
    inner_product,
    truncate,
    wide,
)
from .metadata import changed
from .names import flat
from .peft_config import ALPHA_IS_RANK
from .saving import tensors_of

T = TypeVar("T")


@dataclass(frozen=True, eq=False, repr=False)
class LoRAVector:
    """A LoRA as a vector: `0.8 * style + 1.0 * lcm`, `-`, unary `-` and `/` are exact.

    modules:  canonical name (see `names`) -> Factors, text encoders included
    diffs:    canonical name + `.weight` or `.bias` -> what is added to a norm's weight or a bias
    metadata: the file's text entries
    notes:    what reading the file had to assume, such as an alpha that it lacks; results of arithmetic have none
    """

    modules: Mapping[str, Factors] = field(default_factory=dict)
    diffs: Mapping[str, Tensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def from_state_dict(
        cls, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, rank: int | None = None
    ) -> LoRAVector:
        """Reads kohya, PEFT, diffusers or ComfyUI names. A missing alpha is the metadata's, else the rank; where that
        may be wrong, as in a file with PEFT's names, `notes` says so.

        LoHa, LoKr and dense differences become factors exactly, of a rank up to min(out, in); `rank` limits theirs to
        the nearest of that rank, one module at a time. An alpha of 0 is valid: that module adds nothing.

        Raises ValueError, naming the keys, for what can't be summed as a vector (DoRA, GLoRA, OFT; see
        `file.LoRAFile.native`), for keys that are no LoRA's, incomplete modules, a module in two dialects, factors
        that don't fit each other, values that are NaN or infinite, factors that claim a larger Delta W than any layer
        has, PEFT initialisations that changed the base model too (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA, KaSA) and a rank
        below 1.
        """
        from .file import LoRAFile

        return LoRAFile.of(state_dict, metadata).vector(rank)

    @classmethod
    def load(cls, path: str | os.PathLike[str], rank: int | None = None) -> LoRAVector:
        """Reads a safetensors file; errors are those of `read_lora` and `from_state_dict` and name the file."""
        from .file import LoRAFile, named

        file = LoRAFile.read(path)
        with named(path):
            return file.vector(rank)

    def state_dict(self, dialect: str = "kohya", dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Tensors under a dialect's names; dtype None keeps the factors' own.

        native carries each module's alpha. peft folds alpha into `up` (its readers take alpha = rank). So does kohya
        where alphas differ, since diffusers misreads those; without an alpha every reader takes the rank, but for
        diffusers' of Wan, so that a transformer's file has an alpha, the rank, all the same.

        Raises ValueError for an unknown dialect, a value that dtype can't hold, and in peft for diffs.
        """
        alphas = {factors.alpha for factors in self.modules.values()}
        fold = dialect == "peft" or (dialect == "kohya" and len(alphas) > 1)
        return dict(tensors_of(self, dialect, dtype, fold))

    def save(
        self,
        path: str | os.PathLike[str],
        dialect: str = "kohya",
        dtype: torch.dtype | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Writes a safetensors file, whole or not at all; `metadata` is added to the vector's own."""
        stated = ALPHA_IS_RANK if dialect == "peft" else {}
        write_lora(path, self.state_dict(dialect, dtype), {**self.metadata, **stated, **(metadata or {})})

    def __mul__(self, scale: float) -> LoRAVector:
        if not isinstance(scale, Real):
            return NotImplemented
        if not math.isfinite(scale):
            raise ValueError(f"lambda is {scale}; a LoRA vector is scaled by a finite number, such as 0.8")
        modules = {name: replace(f, alpha=f.alpha * float(scale)) for name, f in self.modules.items()}
        for name, factors in modules.items():
            if not math.isfinite(factors.alpha):
                raise ValueError(
                    f"lambda {scale} overflows alpha of {shortened(name)}; use a smaller lambda, such as 0.8"
                )
        diffs = {name: diff.to(wide(diff.dtype)) * float(scale) for name, diff in self.diffs.items()}
        for name, diff in diffs.items():
            check_finite(name, diff)
        return LoRAVector(modules, diffs, changed(self.metadata, weights=[scale]))

    __rmul__ = __mul__

    def __truediv__(self, scale: float) -> LoRAVector:
        if not isinstance(scale, Real):
            return NotImplemented
        if scale == 0:
            raise ValueError("a LoRA vector can't be divided by 0; use a divisor other than 0")
        return self * (1.0 / scale)

    def __neg__(self) -> LoRAVector:
        return self * -1.0

    def __add__(self, other: LoRAVector) -> LoRAVector:
        """The exact sum, rank = sum of ranks; metadata on which the two don't disagree is kept.

        Raises ValueError where a module's shapes differ (LoRAs for different architectures) or a sum is beyond float32.
        """
        if not isinstance(other, LoRAVector):
            return NotImplemented
        modules = {name: concatenate(name, terms) for name, terms in aligned(self.modules, other.modules).items()}
        diffs = {name: _add_diffs(name, terms) for name, terms in aligned(self.diffs, other.diffs).items()}
        return LoRAVector(modules, diffs, changed(self.metadata, other.metadata))

    def __sub__(self, other: LoRAVector) -> LoRAVector:
        return self + -other if isinstance(other, LoRAVector) else NotImplemented

    def __len__(self) -> int:
        return len(self.modules)

    def __bool__(self) -> bool:
        return bool(self.modules or self.diffs)

    def __repr__(self) -> str:
        size = f"{len(self.modules)} modules, {len(self.diffs)} diffs"
        return f"LoRAVector({size}, rank {self.rank}, {self.parameters:,} parameters)"

    @property
    def rank(self) -> int:
        """The largest rank of a module, 0 for an empty vector."""
        return max((factors.rank for factors in self.modules.values()), default=0)

    @property
    def parameters(self) -> int:
        """Number of values in all factors and diffs."""
        factors = sum(f.down.numel() + f.up.numel() for f in self.modules.values())
        return factors + sum(diff.numel() for diff in self.diffs.values())

    def delta(self, name: str) -> Tensor:
        """Dense Delta W of a module in its weight's shape, float32 or wider.

        Raises KeyError for a module not there, ValueError for one beyond float32 or of more values than any layer has.
        """
        factors = self.modules[name]
        check_size(name, math.prod(factors.shape))
        delta = factors.delta()
        check_finite(name, delta)
        return delta

    def dot(self, other: LoRAVector) -> float:
        """Inner product <Delta W, Delta W'> over all modules and diffs, in float64, from the factors.

        Raises ValueError where a module's shapes differ or the result is beyond float64.
        """
        total = 0.0
        for a, b in _in_both(self.modules, other.modules):
            total += inner_product(a, self.modules[a], other.modules[b])
        for a, b in _in_both(self.diffs, other.diffs):
            x, y = self.diffs[a], other.diffs[b]
            check_shapes(a, x.shape, y.shape)
            total += float((x.double() * y.double().to(x.device)).sum())
        if not math.isfinite(total):
            raise ValueError("the inner product of the vectors is beyond float64's range; scale them down first")
        return total

    def norm(self) -> float:
        """Frobenius norm over all modules."""
        return math.sqrt(max(self.dot(self), 0.0))

    def cosine(self, other: LoRAVector) -> float:
        """Cosine similarity in [-1, 1]; 0 where one vector is zero."""
        norms = self.norm() * other.norm()
        return max(-1.0, min(1.0, self.dot(other) / norms)) if norms else 0.0

    def compress(
        self,
        rank: int | None = None,
        energy: float | None = None,
        *,
        sv_ratio: float | None = None,
        sv_cumulative: float | None = None,
        conv_rank: int | None = None,
    ) -> LoRAVector:
        """The nearest vector of lower rank, module by module; with several limits the strictest counts.

        rank limits every module's rank, conv_rank that of convolutions (1x1 too) in its place.
        energy in (0, 1] keeps the fewest singular values whose squares reach that share of their sum (the square of
        sd-scripts' sv_fro).
        sv_ratio, at least 1, keeps the singular values above the largest / sv_ratio.
        sv_cumulative in (0, 1] keeps the fewest singular values whose sum reaches that share of the sum of all.

        Without any only redundancy goes and Delta W stays. alpha = rank, singular values are shared evenly by both
        factors, float32 or wider. ValueError for a limit out of its range and factors that would be beyond float32.
        """
        limits = Limits(rank, energy, sv_ratio, sv_cumulative, conv_rank)
        modules = {name: checked(name, truncate(factors, limits)) for name, factors in self.modules.items()}
        return LoRAVector(modules, self.diffs, changed(self.metadata))


def _in_both(a: Iterable[str], b: Iterable[str]) -> list[list[str]]:
    """The names of each module in the one and in the other, of those that are in both."""
    return [
        names for names in aligned(*({name: name for name in names} for names in (a, b))).values() if len(names) == 2
    ]


def aligned(*mappings: Mapping[str, T]) -> dict[str, list[T]]:
    """Name -> the entries of the mappings that have it; a flattened name meets its dotted spelling, which is kept."""
    spellings: dict[str, str] = {}
    entries: dict[str, list[T]] = defaultdict(list)
    for mapping in mappings:
        for name, entry in mapping.items():
            key = flat(name)
            spellings[key] = max(spellings.get(key, name), name, key=lambda spelling: spelling.count("."))
            entries[key].append(entry)
    return {spellings[key]: found for key, found in entries.items()}


def _add_diffs(name: str, terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        check_shapes(name, total.shape, term.shape)
        total = total.to(wide(total.dtype)) + term.to(total.device)
    check_finite(name, total)
    return total
