"""What a LoRA file holds, made into the factors of Delta W = alpha/rank * up @ down, module by module.

LoRA and LoCon are such factors already. LoHa (FedPara, arXiv 2108.06098) and LoKr (LyCORIS, arXiv 2309.14859) are
turned into them exactly, from their own small factors, and a dense difference as a product with an identity. DoRA,
GLoRA and OFT are no vectors: what they add depends on the base weight. `native` reads them for use alone.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..text import listed
from .keys import HADAMARD, KRONECKER, canonical_name, flat, split_key
from .lowrank import Factors, decompose, truncate, wide

REFUSED = {
    "DoRA": "DoRA rescales the whole weight after adding, so what it adds depends on the base model",
    "GLoRA": "GLoRA multiplies the base weight, so what it adds depends on the base model",
    "OFT": "OFT rotates the base weight, so what it adds depends on the base model",
    "replacement": "the file replaces or reshapes weights in place of adding to them",
}
LORA = ("down", "up", "mid")
# More values than any layer's Delta W has: small factors that claim more than this are damaged.
LARGEST = 2**31
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
) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """(canonical name -> Factors, canonical name + `.weight` or `.bias` -> difference) of a state dict.

    Arguments and errors are those of `LoRAVector.from_state_dict`.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank is {rank}; it must be at least 1, such as 64")
    if reason := why_not_a_vector(state_dict):
        raise ValueError(f"{reason}. Apply the file to its base model and extract a plain LoRA from the difference")
    modules, diffs = {}, {}
    for module in file_modules(state_dict, metadata):
        factors, added = module_delta(module, rank)
        if factors is not None:
            modules[module.name] = factors
        diffs.update(added)
    return modules, diffs


def file_modules(state_dict: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[Module]:
    """The modules of a file. Raises ValueError for unknown keys, a module in two dialects and values not finite."""
    config = _adapter_config(metadata.get("lora_adapter_metadata"))
    return [Module(name, k, _checked(state_dict, k), config) for name, k in _grouped(state_dict).items()]


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
    if factors is not None and not all(_finite(factor) for factor in (factors.down, factors.up)):
        keys = listed(module.keys.values(), 9)
        raise ValueError(f"the product of {keys} overflows; the file is damaged, get it again")
    return factors, diffs


def _grouped(state_dict: Mapping[str, Tensor]) -> dict[str, dict[str, str]]:
    """Canonical name -> role -> key, checked for unknown keys and modules that appear twice.

    The tensors of a refused kind have their suffixes as roles, a DoRA's magnitude excepted.
    """
    unknown = [key for key in state_dict if split_key(key) is None]
    if unknown:
        raise ValueError(f"no LoRA weights that are known: {listed(unknown)}; use a file with LoRA weights only")
    modules: dict[str, dict[str, str]] = {}
    spellings: dict[str, tuple[str, str, str]] = {}
    for key in state_dict:
        module, role = split_key(key) or ("", "")
        if role in REFUSED and role != "DoRA":
            role = key.removeprefix(module)
        name = canonical_name(module)
        spelling, first_key, name = spellings.setdefault(flat(name), (module, key, name))
        keys = modules.setdefault(name, {})
        if spelling != module or role in keys:
            raise ValueError(
                f"{keys.get(role, first_key)} and {key} are the same module {name} twice; "
                "save each LoRA in a file of its own and add them as vectors"
            )
        keys[role] = key
    return modules


def _checked(state_dict: Mapping[str, Tensor], keys: Mapping[str, str]) -> dict[str, Tensor]:
    """Role -> tensor: real numbers, all finite, in a dtype that can be computed with."""
    tensors = {}
    for role, key in keys.items():
        tensor = state_dict[key].detach()
        if role != "alpha" and not role.endswith("reshape_weight"):
            if not tensor.is_floating_point() or tensor.numel() == 0:
                raise ValueError(
                    f"{key} is {tuple(tensor.shape)} of {tensor.dtype}; a LoRA's weights are floating-point numbers, "
                    "at least one. The file is damaged or quantized, get it again"
                )
            if tensor.dtype.itemsize == 1:
                try:
                    tensor = tensor.to(torch.bfloat16)
                except NotImplementedError as error:
                    raise ValueError(
                        f"{key} is of {tensor.dtype}, which can't be converted; get a float16 file"
                    ) from error
            if not _finite(tensor):
                raise ValueError(f"{key} has NaN or infinite values; the file is damaged, get it again")
        tensors[role] = tensor
    return tensors


def _finite(tensor: Tensor) -> bool:
    return tensor.is_meta or all(math.isfinite(end) for end in tensor.aminmax())


@dataclass(frozen=True)
class Module:
    """One module of a file: role -> key, role -> checked tensor, and the file's PEFT config, {} if it has none."""

    name: str
    keys: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    config: Mapping[str, object]

    @property
    def kinds(self) -> list[tuple[str, ...]]:
        """Which of LoRA, LoHa and LoKr the module has parts of."""
        return [kind for kind in (LORA, HADAMARD, KRONECKER) if self.keys.keys() & set(kind)]

    def need(self, *roles: str) -> list[Tensor]:
        for role in roles:
            if role not in self.tensors:
                raise ValueError(
                    f"{self.name} has {listed(self.keys.values(), 9)} but no {role} factor; "
                    "the file is incomplete, get it again"
                )
        return [self.tensors[role] for role in roles]

    def misfit(self) -> ValueError:
        shapes = ", ".join(f"{key} {tuple(self.tensors[role].shape)}" for role, key in self.keys.items())
        return ValueError(
            f"the factors of {self.name} don't fit each other: {shapes}; the file is damaged, get it again"
        )

    def mixed(self) -> ValueError:
        return ValueError(
            f"{self.name} is adapted in more than one way ({listed(self.keys.values(), 9)}); "
            "save each in a file of its own"
        )

    def alpha(self, rank: int) -> float:
        """The alpha of alpha/rank: the file's, else by PEFT's config, else the rank."""
        stored = self.tensors.get("alpha")
        if stored is None:
            alpha = _adapter_entry(self.name, self.config, "alpha_pattern", "lora_alpha", "alpha")
            component = self.name.partition(".")[0]
            if alpha is None:
                alpha = float(rank)
            elif self.config.get(f"{component}.use_rslora", self.config.get("use_rslora")):
                alpha *= math.sqrt(rank)
        elif stored.numel() != 1 or stored.is_complex():
            raise self.misfit()
        else:
            alpha = float(stored)
        if not math.isfinite(alpha):
            raise ValueError(
                f"alpha of {self.name} is {alpha}; it must be a finite number, the rank {rank} if in doubt"
            )
        return alpha

    def rank(self) -> int | None:
        """The rank that alpha is divided by, None for a LoKr of two whole matrices and what has no factors."""
        last = next((role for role in ("lokr_w2_b", "lokr_w1_b", "hada_w1_b", "down") if role in self.tensors), None)
        return self.tensors[last].shape[0] if last and self.tensors[last].ndim else None

    def scale(self) -> float:
        """alpha/rank; 1 for a LoKr of two whole matrices, unless PEFT's config has an alpha and a rank."""
        rank = self.rank()
        if rank is None:
            rank = int(_adapter_entry(self.name, self.config, "rank_pattern", "r") or 0)
            return self.alpha(rank) / rank if rank and "alpha" not in self.tensors else 1.0
        return self.alpha(rank) / rank


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
        dtype = wide(middle.dtype)
        down = torch.einsum("rs...,si->ri...", middle.to(dtype), down.flatten(1).to(dtype))
        alpha *= inner / rank
    return Factors(down, up, alpha)


def scaled_bias(module: Module) -> Tensor:
    """The bias of PEFT's lora_bias as it is added: alpha/rank times what the file has."""
    (bias,) = module.need("bias")
    return bias.to(wide(bias.dtype)) * module.scale()


def _hadamard(module: Module, limit: int | None) -> Factors:
    """LoHa: (A B) * (C D) entry by entry is one product of rank r1 r2.

    Its up is A[o, i] C[o, j] and its down B[i, n] D[j, n], the rank's index running over the pairs (i, j).
    """
    a, b, c, d = module.need(*HADAMARD[:4])
    up, down, kernel = _half(module, a, b, "hada_t1")
    up_2, down_2, kernel_2 = _half(module, c, d, "hada_t2")
    if len(up) != len(up_2) or down.shape[1] != down_2.shape[1] or kernel != kernel_2:
        raise module.misfit()
    scale = module.scale()
    shape = _shape(module.name, len(up), down.shape[1], kernel)
    inner = len(down) * len(down_2)
    if inner >= min(len(up), down.shape[1]):
        _check_size(module, len(up) * down.shape[1])
        return _of_dense((scale * (up @ down) * (up_2 @ down_2)).reshape(shape), limit)
    pairs_up = torch.einsum("oi,oj->oij", scale * up, up_2).flatten(1)
    pairs_down = torch.einsum("in,jn->ijn", down, down_2).flatten(0, 1)
    return _limited(Factors.of_matrices(pairs_down, pairs_up, shape), limit)


def _kronecker(module: Module, limit: int | None) -> Factors:
    """LoKr: kron(A B, C D) = kron(A, C) kron(B, D), each half a product or a whole matrix."""
    halves = []
    for half in ("lokr_w1", "lokr_w2"):
        if half in module.tensors:
            whole = module.tensors[half]
            if whole.ndim < 2 or module.tensors.keys() & {f"{half}_a", f"{half}_b"}:
                raise module.misfit()
            factors = Factors.of_dense(whole.to(wide(whole.dtype)).flatten(1))
            halves.append((factors.up, factors.down, tuple(whole.shape[2:])))
        else:
            a, b = module.need(f"{half}_a", f"{half}_b")
            halves.append(_half(module, a, b, "lokr_t2" if half == "lokr_w2" else ""))
    (up, down, kernel), (up_2, down_2, kernel_2) = halves
    if kernel or {"lokr_t2", "lokr_w2"} <= module.tensors.keys():
        raise module.misfit()
    scale = module.scale()
    rows, columns, inner = len(up) * len(up_2), down.shape[1] * down_2.shape[1], len(down) * len(down_2)
    shape = _shape(module.name, rows, columns, kernel_2)
    if inner >= min(rows, columns):
        _check_size(module, rows * columns)
        return _of_dense((scale * torch.kron(up @ down, up_2 @ down_2)).reshape(shape), limit)
    _check_size(module, (rows + columns) * inner)
    return _limited(Factors.of_matrices(torch.kron(down, down_2), torch.kron(scale * up, up_2), shape), limit)


def _half(module: Module, a: Tensor, b: Tensor, core: str) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """(up (out, rank), down (rank, in*kh*kw), kernel if the file tells it) of one half of a LoHa or LoKr.

    a (out, rank), b (rank, in) or (rank, in, kh, kw). With a Tucker core (rank, rank, kh, kw): a (rank, out), b
    (rank, in), and the half is sum_ij core[i, j] a[i] b[j].
    """
    middle = module.tensors.get(core)
    dtype = torch.promote_types(wide(a.dtype), wide(b.dtype))
    a, b = a.to(dtype), b.to(dtype)
    if middle is None:
        if a.ndim < 2 or b.ndim < 2 or a.flatten(1).shape[1] != b.shape[0]:
            raise module.misfit()
        return a.flatten(1), b.flatten(1), tuple(b.shape[2:])
    if a.ndim != 2 or b.ndim != 2 or middle.ndim < 3 or middle.shape[:2] != (a.shape[0], b.shape[0]):
        raise module.misfit()
    down = torch.einsum("ij...,jn->in...", middle.to(dtype), b)
    return a.T.contiguous(), down.flatten(1), tuple(middle.shape[2:])


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


def _check_size(module: Module, size: int) -> None:
    if size > LARGEST:
        raise ValueError(
            f"{module.name} would have {size:,} values and at most {LARGEST:,} are read; "
            "the file is damaged, get it again"
        )


def _adapter_config(text: str | None) -> dict[str, object]:
    try:
        config = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"lora_adapter_metadata is not JSON ({error}); remove it or correct it") from error
    if not isinstance(config, dict):
        raise ValueError(f"lora_adapter_metadata {text!r} is not a JSON object; remove it or correct it")
    return config


def _adapter_entry(name: str, config: Mapping[str, object], patterns: str, *entries: str) -> float | None:
    """PEFT's number for a module: by `patterns` (a path or its end), else the first of the entries that is there."""
    component, _, path = name.partition(".")

    def entry(key: str) -> object:
        return config.get(f"{component}.{key}", config.get(key))

    found: object = next((entry(key) for key in entries if entry(key) is not None), None)
    by_module = entry(patterns)
    for pattern, value in by_module.items() if isinstance(by_module, dict) else ():
        ending = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if not re.fullmatch(r"[\w.]+", ending):
            raise ValueError(f"{patterns} {pattern!r} is not a module path; write one pattern per module path")
        if ending in (name, path) if pattern.startswith("^") else f".{name}".endswith(f".{ending}"):
            found = value
            break
    if found is None:
        return None
    if not isinstance(found, (int, float)) or not abs(found) < 1e30:
        raise ValueError(f"{entries[0]} of {name} is {found!r} in the adapter's metadata; it must be a finite number")
    return float(found)
