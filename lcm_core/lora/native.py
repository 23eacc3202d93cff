"""Every kind of LoRA file under the names of ComfyUI's `load_lora`, each adapter as it is, to be applied alone.

So LoHa and LoKr keep their small factors, and DoRA, GLoRA and OFT, which are no vectors, can be used: `effect` says
what each adds to a weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..text import listed, quoted, shortened
from .convert import NATIVE, module_delta, module_factors, scaled_bias
from .effect import generalized_factors
from .module import Module, file_modules, finite
from .names.table import canonical_paths, is_native
from .names.writing import spell

# (out, in*kh*kw) of the weight that an adapter fits, None where it leaves that open.
Size = tuple[int | None, int | None]


def native_adapters(state_dict: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """The file's tensors under native names, with the alphas of PEFT's config, which this dict alone must carry.

    Values are unchanged but for what the host would misread: a Tucker core is multiplied into `lora_down`, a PEFT bias
    and a LoKr of two whole matrices are scaled, PEFT's magnitudes (out,) become `dora_scale` (out, 1, ...), and its OFT
    vectors the rotations `oft_R` (blocks, b, b) of `rotated`.

    Raises ValueError for unknown keys, incomplete modules, a module in two dialects, factors that don't fit each other
    and values that are NaN or infinite.
    """
    modules = file_modules(state_dict, metadata or {})
    names = _native_names(modules)
    renamed: dict[str, Tensor] = {}
    for module in modules:
        tensors = _as_the_host_reads(module)
        if not all(finite(tensor) for role, tensor in tensors.items() if role not in ("alpha", ".reshape_weight")):
            raise module.overflow()
        _sizes(replace(module, tensors=tensors, keys={role: module.keys.get(role, role) for role in tensors}))
        renamed |= {names[module.name] + NATIVE.get(role, role): tensor for role, tensor in tensors.items()}
    return renamed


def adapter_sizes(modules: Iterable[Module]) -> dict[str, Size]:
    """Canonical name + `.weight` or `.bias` -> the size that it must have in the model."""
    sizes: dict[str, Size] = {}
    for module in modules:
        sizes |= _sizes(module)
    return sizes


def _native_names(modules: list[Module]) -> dict[str, str]:
    """Canonical name -> name in the host: a transformer's modules keep the file's spelling, fused or not."""
    names = {module.name: module.spelling.dotted for module in modules}
    single = spell([name for name, dotted in names.items() if not canonical_paths(_path(dotted))], "native")
    for name, dotted in names.items():
        if name not in single:
            single[name] = f"diffusion_model.{_path(dotted)}" if is_native(_path(dotted)) else dotted
    return single


def _path(dotted: str) -> str:
    return dotted.removeprefix("transformer.")


def _as_the_host_reads(module: Module) -> dict[str, Tensor]:
    tensors = dict(module.tensors)
    if "mid" in tensors:
        factors = module_factors(module)
        tensors |= {"down": factors.down, "up": factors.up, "alpha": torch.tensor(factors.alpha)}
        del tensors["mid"]
    elif "alpha" not in tensors and module.config:
        rank = module.rank()
        if rank:
            tensors["alpha"] = torch.tensor(module.alpha(rank))
        elif "lokr_w1" in tensors:
            tensors["lokr_w1"] = tensors["lokr_w1"] * module.scale()
    if "bias" in tensors:
        del tensors["bias"]
        tensors["diff_b"] = scaled_bias(module)
    if "DoRA" in tensors and ("magnitude" in module.keys["DoRA"] or tensors["DoRA"].ndim == 1):
        up = tensors.get("up")
        tensors["DoRA"] = tensors["DoRA"].reshape(-1, *[1] * (up.ndim - 1 if up is not None else 1))
    for role in [role for role in tensors if role.startswith(".oft_R") and tensors[role].ndim == 2]:
        tensors[".oft_R"] = _cayley(module, tensors.pop(role))
    return tensors


def _cayley(module: Module, vectors: Tensor) -> Tensor:
    """PEFT's rotations (n, b, b) from the upper triangles (n, b(b-1)/2) of skew Q: (I - Q)(I + Q)^-1, or its series."""
    if module.config.get("coft"):
        raise ValueError(
            f"{shortened(module.name)} is constrained OFT, which isn't read; merge it into its base model with PEFT"
        )
    count, values = vectors.shape
    size = (1 + math.isqrt(1 + 8 * values)) // 2
    if size * (size - 1) // 2 != values:
        raise module.misfit()
    rows, columns = torch.triu_indices(size, size, 1)
    skew = torch.zeros(count, size, size)
    skew[:, rows, columns] = vectors.float()
    skew = skew - skew.transpose(1, 2)
    eye = torch.eye(size).expand_as(skew)
    if not module.config.get("use_cayley_neumann", True):
        return torch.linalg.solve(eye + skew, eye - skew, left=False)
    terms = module.config.get("num_cayley_neumann_terms", 5)
    if not isinstance(terms, int) or not 1 <= terms <= 100:
        raise ValueError(
            f"num_cayley_neumann_terms is {quoted(terms)} in the adapter's metadata; it is 1 to 100, such as 5"
        )
    total, power = eye.clone(), eye
    last = terms - 1 if terms < 3 else max(terms - 1, 3)
    for i in range(1, last + 1):
        power = power @ skew
        total += power if i == last > 2 else 2 * power
    return total


def _sizes(module: Module) -> dict[str, Size]:
    """What `adapter_sizes` says of one module, from shapes alone."""
    roles = module.tensors
    on_meta = {role: tensor if role == "alpha" else tensor.to("meta") for role, tensor in roles.items()}
    additive = {role: tensor for role, tensor in on_meta.items() if role in NATIVE and role != "DoRA"}
    rewriting = sorted(roles.keys() - additive.keys() - {"DoRA"})
    weight = f"{module.name}.weight"
    if rewriting not in ([], [".reshape_weight"]):
        if roles.keys() - {*rewriting, "alpha"}:
            raise module.mixed()
        return {weight: _rewriting_size(module, rewriting)}
    keys = {role: module.keys[role] for role in additive}
    factors, diffs = module_delta(replace(module, tensors=additive, keys=keys))
    sizes: dict[str, Size] = {name: (len(diff), 1) for name, diff in diffs.items()}
    if factors is None:
        if rewriting or "DoRA" in roles:
            module.need("down", "up")
        return sizes
    size = (factors.shape[0], math.prod(factors.shape[1:]))
    if "DoRA" in roles and (rewriting or not _fits(roles["DoRA"], *size)):
        raise module.misfit()
    if rewriting and math.prod(roles[".reshape_weight"].flatten().tolist()) != math.prod(size):
        raise module.misfit()
    return {**sizes, weight: (None, None) if rewriting else size}


def _fits(magnitude: Tensor, rows: int, columns: int) -> bool:
    """Whether a magnitude is (out, 1, ...) or (1, in, ...) of that weight."""
    if magnitude.ndim < 2:
        return False
    per_row, inputs = len(magnitude) == rows == magnitude.numel(), magnitude.shape[1]
    return per_row or (magnitude.numel() == inputs and columns % inputs == 0)


def _rewriting_size(module: Module, roles: list[str]) -> Size:
    tensors = module.tensors
    if set(roles) - {".bm.weight"} == {".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight"}:
        _, a2, b1, b2 = generalized_factors(module)
        core = tensors.get(".bm.weight", b2.new_empty(len(a2), len(a2)))
        if core.shape[:2] != (len(a2), len(a2)):
            raise module.misfit()
        return len(b1), b2.shape[1] * math.prod(core.shape[2:])
    if set(roles) - {".rescale"} == {".oft_blocks"} and tensors[".oft_blocks"].ndim in (3, 4):
        *stages, blocks, rows, columns = tensors[".oft_blocks"].shape
        butterfly = not stages or (rows % 2 == 0 and stages[0] < 64 and blocks % 2 ** (stages[0] - 1) == 0)
        rescale = tensors.get(".rescale")
        if rows != columns or not butterfly or (rescale is not None and rescale.numel() != blocks * rows):
            raise module.misfit()
        return blocks * rows, None
    if roles == [".oft_R"] and tensors[".oft_R"].ndim == 3:
        blocks, rows, columns = tensors[".oft_R"].shape
        if rows == columns:
            return None, blocks * rows if blocks > 1 else None
    if roles == [".set_weight"] and tensors[".set_weight"].ndim:
        rows, *rest = tensors[".set_weight"].shape
        return rows, math.prod(rest)
    raise ValueError(
        f"{shortened(module.name)} has {listed(module.keys.values(), 9)}, an adapter that ComfyUI can't apply; "
        "merge it into its base model with the program that made it, or get the file as a LoRA"
    )
