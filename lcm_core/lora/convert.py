"""What a LoRA file holds, made into the factors of Delta W = alpha/rank * up @ down, module by module.

LoRA and LoCon are such factors already. LoHa (FedPara, arXiv 2108.06098) and LoKr (LyCORIS, arXiv 2309.14859) are
turned into them exactly, from their own small factors, and a dense difference as a product with an identity. DoRA,
GLoRA and OFT are no vectors: what they add depends on the base weight. `native` reads them for use alone.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..text import listed
from .architecture import projects_by_convolution
from .fusion import part_rows, split, unswapped, unswapped_diff
from .keys import HADAMARD, KRONECKER, split_key
from .lowrank import Factors, check_size, decompose, truncate, wide
from .module import LORA, REFUSED, Module, file_modules, finite
from .names.table import families_with

# More values than a vector of any diffusion model has as LoHa or LoKr made into factors: 17 GB.
LARGEST_FILE = 2**32
NATIVE = {
    **{"down": ".lora_down.weight", "up": ".lora_up.weight", "mid": ".lora_mid.weight", "alpha": ".alpha"},
    **{"diff": ".diff", "diff_b": ".diff_b", "DoRA": ".dora_scale"},
    **{role: f".{role}" for role in HADAMARD + KRONECKER},
}
# Convolutions of a Stable Diffusion UNet, whose kernels a LoHa or LoKr file flattens into the input axis.
_KERNELS = (
    (re.compile(r"unet\.(?:(?:down|up|mid)_blocks?\..*\.)?conv(?:[12]|_in|_out)?"), (3, 3)),
    (re.compile(r"unet\..*\.conv_shortcut"), (1, 1)),
)
_PROJECTION = re.compile(r"unet\..*attentions\.\d+\.proj_(?:in|out)")


def why_not_a_vector(state_dict: Mapping[str, Tensor]) -> str | None:
    """Why the file can't be summed as a vector, with its keys; None if it can."""
    found: dict[str, list[str]] = defaultdict(list)
    for key in state_dict:
        split = split_key(key)
        if split and split[1] in REFUSED:
            found[split[1]].append(key)
    for role, keys in found.items():
        return f"{role} weights can't be summed as a vector: {REFUSED[role]} ({listed(keys)})"
    return None


def read_modules(
    state_dict: Mapping[str, Tensor], metadata: Mapping[str, str], rank: int | None = None
) -> tuple[dict[str, Factors], dict[str, Tensor], list[str]]:
    """(canonical name -> Factors, canonical name + `.weight` or `.bias` -> difference, families) of a state dict.

    Families are those of `names` that have all its transformer's spellings, none if it is no transformer's.
    Arguments and errors are those of `LoRAVector.from_state_dict`.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank is {rank}; it must be at least 1, such as 64")
    if reason := why_not_a_vector(state_dict):
        raise ValueError(f"{reason}. Apply the file to its base model and extract a plain LoRA from the difference")
    modules: dict[str, Factors] = {}
    diffs: dict[str, Tensor] = {}
    flattened = []
    size = 0
    read = file_modules(state_dict, metadata)
    for module in read:
        factors, added = module_delta(module, rank)
        if factors is not None:
            parts, swapped = module.spelling.parts, module.spelling.swapped
            modules |= dict(zip(parts, split(module.name, unswapped(factors, swapped), len(parts)), strict=True))
            size += factors.down.numel() + factors.up.numel()
            if size > LARGEST_FILE:
                raise ValueError(
                    f"the factors of this file have over {LARGEST_FILE:,} values, which is more than is read; "
                    "give a rank, such as 64, to read the nearest vector of that rank"
                )
            if module.kinds != [LORA] and len(factors.shape) == 2:
                flattened.append(module.name)
        for name, diff in added.items():
            diffs |= _split_diff(module, name.rpartition(".")[2], diff, factors)
    projections = [name for name in flattened if _PROJECTION.fullmatch(name)]
    if projections and projects_by_convolution({name: f.shape for name, f in modules.items()}, metadata):
        for name in projections:
            modules[name] = modules[name].with_kernel((1, 1))
    sizes = {name: (len(factors.up), factors.down[0].numel()) for name, factors in modules.items()}
    return modules, diffs, families_with((module.spelling.dotted for module in read), sizes)


def _split_diff(module: Module, kind: str, diff: Tensor, factors: Factors | None) -> dict[str, Tensor]:
    parts, swapped = module.spelling.parts, module.spelling.swapped
    if len(parts) == 1:
        return {f"{parts[0]}.{kind}": unswapped_diff(diff, factors, swapped)}
    if factors is None:
        raise ValueError(
            f"{listed(module.keys.values())} is the bias of a fused weight that the file has no factors for, so its "
            "parts are unknown; remove it, or apply the file alone"
        )
    rows = part_rows(module.name, len(parts), len(diff), factors.down[0].numel())
    return {f"{part}.{kind}": rest for part, rest in zip(parts, diff.split(rows), strict=True)}


def module_delta(module: Module, rank: int | None = None) -> tuple[Factors | None, dict[str, Tensor]]:
    """(Delta W, canonical name + `.weight` or `.bias` -> difference of a norm or bias) of a module, on any device."""
    factors, diffs = None, {}
    dense = module.tensors.get("diff")
    if "diff_b" in module.keys:
        diffs[f"{module.name}.bias"] = module.tensors["diff_b"]
    if dense is not None and dense.ndim < 2:
        diffs[f"{module.name}.weight"] = dense
        dense = None
    kinds = module.kinds
    if len(kinds) + (dense is not None) > 1 or {"bias", "diff_b"} <= module.keys.keys():
        raise module.mixed()
    if dense is not None:
        factors = _of_dense(dense, rank)
    elif kinds == [HADAMARD]:
        factors = _hadamard(module, rank)
    elif kinds == [KRONECKER]:
        factors = _kronecker(module, rank)
    elif kinds or module.keys.keys() & {"alpha", "bias"}:
        factors = module_factors(module)
        if "bias" in module.keys:
            diffs[f"{module.name}.bias"] = scaled_bias(module)
    if any(diff.ndim != 1 for diff in diffs.values()):
        raise module.misfit()
    computed = [] if factors is None else [factors.down, factors.up]
    if not all(finite(tensor) for tensor in (*computed, *diffs.values())):
        raise module.overflow()
    return factors, diffs


def dense(module: Module) -> Tensor:
    """Delta W (out, in*kh*kw) of a LoRA, LoHa, LoKr or dense difference, on its tensors' device, float32 or wider."""
    if module.kinds == [HADAMARD]:
        a, b = _hadamard_halves(module)
        return module.scale() * a.matrix() * b.matrix()
    if module.kinds == [KRONECKER]:
        a, b = _kronecker_halves(module)
        return torch.kron(module.scale() * a.matrix(), b.matrix())
    if module.kinds:
        return module_factors(module).delta().flatten(1)
    (difference,) = module.need("diff")
    return difference.to(wide(difference.dtype)).flatten(1)


def module_factors(module: Module) -> Factors:
    down, up = module.need("down", "up")
    middle = module.tensors.get("mid")
    rank = down.shape[0] if down.ndim > 1 else 0
    inner = up.flatten(1).shape[1] if up.ndim > 1 else 0
    if middle is None:
        fits = rank == inner
    else:
        fits = middle.ndim > 2 and middle.shape[:2] == (inner, rank) and math.prod(down.shape[2:]) == 1
    if not (rank and fits):
        raise module.misfit()
    alpha = module.alpha(rank)
    if middle is not None:
        check_size(module.name, middle.numel() // rank * down.flatten(1).shape[1])
        dtype = wide(middle.dtype)
        down = torch.einsum("rs...,si->ri...", middle.to(dtype), down.flatten(1).to(dtype))
        alpha *= inner / rank
    return Factors(down, up, alpha)


def scaled_bias(module: Module) -> Tensor:
    """The bias of PEFT's lora_bias as it is added: alpha/rank times what the file has."""
    (bias,) = module.need("bias")
    return bias.to(wide(bias.dtype)) * module.scale()


@dataclass(frozen=True)
class _Half:
    """One half of a LoHa or LoKr: up (out, rank), down (rank, in*kh*kw) and the kernel if the file tells it.

    whole is their product (out, in*kh*kw) where the file has that.
    """

    up: Tensor
    down: Tensor
    kernel: tuple[int, ...]
    whole: Tensor | None = None

    def matrix(self) -> Tensor:
        return self.up @ self.down if self.whole is None else self.whole


def _hadamard(module: Module, limit: int | None) -> Factors:
    """LoHa: (A B) * (C D) entry by entry is one product of rank r1 r2.

    Its up is A[o, i] C[o, j] and its down B[i, n] D[j, n], the rank's index running over the pairs (i, j).
    """
    a, b = _hadamard_halves(module)
    rows, columns, inner = len(a.up), a.down.shape[1], len(a.down) * len(b.down)
    shape = _shape(module.name, rows, columns, a.kernel)
    if inner >= min(rows, columns):
        check_size(module.name, rows * columns)
        return _of_dense((module.scale() * a.matrix() * b.matrix()).reshape(shape), limit)
    check_size(module.name, (rows + columns) * inner)
    pairs_up = torch.einsum("oi,oj->oij", module.scale() * a.up, b.up).flatten(1)
    pairs_down = torch.einsum("in,jn->ijn", a.down, b.down).flatten(0, 1)
    return _limited(Factors.of_matrices(pairs_down, pairs_up, shape), limit)


def _hadamard_halves(module: Module) -> tuple[_Half, _Half]:
    w1_a, w1_b, w2_a, w2_b = module.need(*HADAMARD[:4])
    a, b = _half(module, w1_a, w1_b, "hada_t1"), _half(module, w2_a, w2_b, "hada_t2")
    if len(a.up) != len(b.up) or a.down.shape[1] != b.down.shape[1] or a.kernel != b.kernel:
        raise module.misfit()
    return a, b


def _kronecker(module: Module, limit: int | None) -> Factors:
    """LoKr: kron(A B, C D) = kron(A, C) kron(B, D), each half a product or a whole matrix."""
    a, b = _kronecker_halves(module)
    rows, columns = len(a.up) * len(b.up), a.down.shape[1] * b.down.shape[1]
    inner = len(a.down) * len(b.down)
    shape = _shape(module.name, rows, columns, b.kernel)
    if inner >= min(rows, columns):
        check_size(module.name, rows * columns)
        return _of_dense(torch.kron(module.scale() * a.matrix(), b.matrix()).reshape(shape), limit)
    check_size(module.name, (rows + columns) * inner)
    up = torch.kron(module.scale() * a.up, b.up)
    return _limited(Factors.of_matrices(torch.kron(a.down, b.down), up, shape), limit)


def _kronecker_halves(module: Module) -> tuple[_Half, _Half]:
    halves = []
    for half in ("lokr_w1", "lokr_w2"):
        if half in module.tensors:
            whole = module.tensors[half]
            if whole.ndim < 2 or module.tensors.keys() & {f"{half}_a", f"{half}_b"}:
                raise module.misfit()
            matrix = whole.to(wide(whole.dtype)).flatten(1)
            factors = Factors.of_dense(matrix)
            halves.append(_Half(factors.up, factors.down, tuple(whole.shape[2:]), matrix))
        else:
            a, b = module.need(f"{half}_a", f"{half}_b")
            halves.append(_half(module, a, b, "lokr_t2" if half == "lokr_w2" else ""))
    if halves[0].kernel or {"lokr_t2", "lokr_w2"} <= module.tensors.keys():
        raise module.misfit()
    return halves[0], halves[1]


def _half(module: Module, a: Tensor, b: Tensor, core: str) -> _Half:
    """a (out, rank), b (rank, in) or (rank, in, kh, kw). With a Tucker core (rank, rank, kh, kw): a (rank, out), b
    (rank, in), and the half is sum_ij core[i, j] a[i] b[j].
    """
    middle = module.tensors.get(core)
    dtype = torch.promote_types(wide(a.dtype), wide(b.dtype))
    a, b = a.to(dtype), b.to(dtype)
    if middle is None:
        if a.ndim < 2 or b.ndim < 2 or a.flatten(1).shape[1] != b.shape[0]:
            raise module.misfit()
        return _Half(a.flatten(1), b.flatten(1), tuple(b.shape[2:]))
    if a.ndim != 2 or b.ndim != 2 or middle.ndim < 3 or middle.shape[:2] != (a.shape[0], b.shape[0]):
        raise module.misfit()
    check_size(module.name, middle.numel() // len(b) * b.shape[1])
    down = torch.einsum("ij...,jn->in...", middle.to(dtype), b)
    return _Half(a.T.contiguous(), down.flatten(1), tuple(middle.shape[2:]))


def _shape(name: str, rows: int, columns: int, kernel: tuple[int, ...]) -> tuple[int, ...]:
    """The weight's shape, its kernel from the file or, for a flattened convolution of a UNet, by the module's name."""
    if not kernel:
        kernel = next((size for pattern, size in _KERNELS if pattern.fullmatch(name)), ())
        if columns % math.prod(kernel):
            kernel = ()
    return (rows, columns // math.prod(kernel), *kernel)


def _of_dense(delta: Tensor, limit: int | None) -> Factors:
    if limit is None or limit >= min(delta.flatten(1).shape):
        return Factors.of_dense(delta)
    return decompose(delta, limit)[0]


def _limited(factors: Factors, limit: int | None) -> Factors:
    return factors if limit is None or factors.rank <= limit else truncate(factors, limit)
