"""A LoRA vector from two checkpoints: the nearest low-rank factors of theta_tuned - theta_base, layer by layer.

tau = theta_tuned - theta_base is what LCM-LoRA (arXiv 2311.05556, eq. 2) calls a vector; truncating each layer's
singular values gives the nearest one of a rank (Eckart-Young).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..files import open_safetensors
from ..text import listed, shortened
from .fusion import part_rows
from .lowrank import Factors, Limits, decompose, wide
from .names import Spelling, read_name, read_names
from .names.encoders import ENCODERS
from .vector import LoRAVector

# A safetensors file, or tensors at hand under a checkpoint's names.
Source = str | os.PathLike[str] | Mapping[str, Tensor]

COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoders", "text_encoder_3", *ENCODERS)
# Parts of a checkpoint that no LoRA adapts: the VAE and the averaged copy of the weights.
SKIPPED = ("first_stage_model.", "vae.", "model_ema.")
# Suffixes of the factors that a quantized weight is to be multiplied by.
SCALES = (".scale_weight", ".weight_scale", "scaled_fp8")
_FIRST, _SECOND = r"(?:cond_stage_model|conditioner\.embedders\.0)", r"conditioner\.embedders\.1"
_CHECKPOINT = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"^{_FIRST}\.transformer\.", "text_encoder."),
        (rf"^{_FIRST}\.model\.transformer\.resblocks\.", "text_encoder.text_model.encoder.layers."),
        (rf"^{_SECOND}\.model\.transformer\.resblocks\.", "text_encoder_2.text_model.encoder.layers."),
        (rf"^{_FIRST}\.model\.ln_final$", "text_encoder.text_model.final_layer_norm"),
        (rf"^{_SECOND}\.model\.ln_final$", "text_encoder_2.text_model.final_layer_norm"),
    )
)
_OPEN_CLIP_LEAVES = {
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}
_OPEN_CLIP_LEAF = re.compile(
    rf"^(text_encoder(?:_2)?\.text_model\.encoder\.layers\.\d+\.)({'|'.join(map(re.escape, _OPEN_CLIP_LEAVES))})$"
)
# What a name without a known prefix belongs to: nothing more in a single-file checkpoint, else the file's one model.
_BARE = (
    (("model.diffusion_model.", "diffusion_model."), ""),
    (("transformer_blocks.", "single_transformer_blocks."), "transformer."),
)


@dataclass(frozen=True)
class Layer:
    """What was kept of one layer: its canonical name, the shape of Delta W, its Frobenius norm, the rank of the factors
    and the share of the norm's square that they hold.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    rank: int
    energy: float


@dataclass(frozen=True)
class Report:
    """layers: what was decomposed. equal: how many parameters are the same in both checkpoints. left_out: names of
    parameters that differ or that one checkpoint lacks, and that the vector does not hold.
    """

    layers: tuple[Layer, ...]
    equal: int
    left_out: tuple[str, ...]

    @property
    def energy(self) -> float:
        """The share of all layers' squared norms that the vector holds, in [0, 1]."""
        total = sum(layer.norm**2 for layer in self.layers)
        return sum(layer.energy * layer.norm**2 for layer in self.layers) / total if total else 1.0


@dataclass(frozen=True)
class _Parameter:
    """Where a source keeps a parameter: its key, which of how many parts of a fused one, `swapped` as in `names`."""

    key: str
    part: int = 0
    count: int = 1
    swapped: bool = False


def extract(
    tuned: Source,
    base: Source,
    rank: int | None = None,
    energy: float | None = None,
    *,
    diffs: bool = False,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[LoRAVector, Report]:
    """(tuned - base as a vector, what it holds of each layer), with one layer in memory at a time.

    tuned, base: safetensors files, or mappings of names to tensors. Each may have the names of a single-file checkpoint
    (`model.diffusion_model.`, `cond_stage_model.`, `conditioner.`), of ComfyUI (`diffusion_model.`) or of a diffusers
    UNet, transformer or text encoder.
    rank limits every layer's rank; energy in (0, 1] takes the fewest singular values whose squares reach that share of
    their sum; with both, the smaller. Linear layers (out, in) and convolutions (out, in, kh, kw) become factors,
    float32 or wider. Biases and norms become `diffs` on request. Layers that are equal, also where one file only rounds
    the other's values, are left out. device is where the decompositions run.
    progress(done, total) is called after each parameter; what it raises ends the work.

    Raises ValueError without rank and energy, for a rank below 1, an energy outside (0, 1], checkpoints that have no
    layer in common, other shapes or nothing that differs, values that are NaN or infinite and scaled fp8; for files
    as `open_safetensors`.
    """
    if rank is None and energy is None:
        raise ValueError("neither rank nor energy is given; give a rank such as 64 or an energy such as 0.95")
    limits = Limits(rank, energy)
    with _opened(tuned) as (tuned_keys, get_tuned), _opened(base) as (base_keys, get_base):
        places, base_places = _parameters(tuned_keys), _parameters(base_keys)
        names = [name for name in places if name in base_places]
        if not names:
            raise ValueError(
                f"{_label(tuned)} ({listed(tuned_keys)}) and {_label(base)} ({listed(base_keys)}) have no layer in "
                "common; give two checkpoints of one architecture"
            )
        modules: dict[str, Factors] = {}
        kept_diffs: dict[str, Tensor] = {}
        layers, equal = [], 0
        left_out = [name for name in {**places, **base_places} if name not in places or name not in base_places]
        for done, name in enumerate(names, 1):
            a, b = _read(get_tuned, places[name]), _read(get_base, base_places[name])
            if a.shape != b.shape and _without_ones(a.shape) != _without_ones(b.shape):
                raise ValueError(
                    f"{shortened(name)} is {tuple(a.shape)} in {_label(tuned)} and {tuple(b.shape)} in {_label(base)}; "
                    "give two checkpoints of one architecture"
                )
            delta = _difference(a, b.reshape(a.shape))
            module, _, kind = name.rpartition(".")
            if delta is None:
                equal += 1
            elif not torch.isfinite(delta).all():
                raise ValueError(
                    f"{shortened(name)} has NaN or infinite values in {_label(tuned)} or {_label(base)}; get it again"
                )
            elif kind == "weight" and delta.ndim > 1 and not module.endswith("embedding"):
                factors, share = decompose(delta.to(device or delta.device), limits)
                modules[module] = Factors(factors.down.cpu(), factors.up.cpu(), factors.alpha)
                layers.append(Layer(module, tuple(delta.shape), float(delta.double().norm()), factors.rank, share))
            elif diffs and delta.ndim == 1:
                kept_diffs[name] = delta
            else:
                left_out.append(name)
            if progress is not None:
                progress(done, len(names))
    if not modules and not kept_diffs:
        raise ValueError(
            f"{_label(tuned)} and {_label(base)} are equal in all {equal} parameters that could be extracted; "
            "give a fine-tuned checkpoint and the one that it was tuned from"
        )
    return LoRAVector(modules, kept_diffs), Report(tuple(layers), equal, tuple(left_out))


@contextmanager
def _opened(source: Source) -> Iterator[tuple[list[str], Callable[[str], Tensor]]]:
    if isinstance(source, Mapping):
        yield list(source), source.__getitem__
    else:
        with open_safetensors(source) as file:
            yield list(file.keys()), file.get_tensor


def _label(source: Source) -> str:
    return "the tensors given" if isinstance(source, Mapping) else str(source)


def _parameters(keys: list[str]) -> dict[str, _Parameter]:
    """Canonical name + `.weight` or `.bias` -> where it is. A name without a known prefix is the diffusion model's."""
    scaled = [key for key in keys if key.endswith(SCALES)]
    if scaled:
        raise ValueError(
            f"the checkpoint is fp8 with scales ({listed(scaled)}); give one in float16, bfloat16 or float32"
        )
    bare = next((component for head, component in _BARE if any(key.startswith(head) for key in keys)), "unet.")
    kept = [key for key in keys if not key.startswith(SKIPPED)]
    spellings = read_names(_layer(key.rpartition(".")[0]) for key in kept)
    found: dict[str, _Parameter] = {}
    for key in kept:
        for name, place in _names(key, bare, spellings):
            if name in found:
                raise ValueError(
                    f"{shortened(found[name].key)} and {shortened(key)} are the same parameter {shortened(name)}; "
                    "give a file that has it once"
                )
            found[name] = place
    return found


def _names(key: str, bare: str, spellings: Mapping[str, Spelling]) -> list[tuple[str, _Parameter]]:
    fused = re.fullmatch(r"(.+\.resblocks\.\d+)\.attn\.in_proj_(weight|bias)", key)
    if fused:
        (layer,), _ = _canonical(f"{fused[1]}.attn.out_proj", bare, spellings)
        layer = layer.removesuffix("out_proj")
        return [(f"{layer}{'qkv'[i]}_proj.{fused[2]}", _Parameter(key, i, 3)) for i in range(3)]
    module, _, kind = key.rpartition(".")
    if kind not in ("weight", "bias") or not module:
        return []
    parts, swapped = _canonical(module, bare, spellings)
    return [(f"{part}.{kind}", _Parameter(key, i, len(parts), swapped)) for i, part in enumerate(parts)]


def _layer(module: str) -> str:
    """A module of a checkpoint's text encoders under diffusers' name; others as they are."""
    for pattern, replacement in _CHECKPOINT:
        module, found = pattern.subn(replacement, module)
        if found:
            break
    return _OPEN_CLIP_LEAF.sub(lambda leaf: leaf[1] + _OPEN_CLIP_LEAVES[leaf[2]], module)


def _canonical(module: str, bare: str, spellings: Mapping[str, Spelling]) -> tuple[tuple[str, ...], bool]:
    """(canonical names of a module's parts, whether its halves are exchanged)."""
    name = _layer(module)
    spelling = spellings.get(name) or read_name(name)
    known = spelling.parts[0].partition(".")[0] in COMPONENTS
    return (spelling.parts if known else (bare + spelling.parts[0],)), spelling.swapped


def _read(get: Callable[[str], Tensor], place: _Parameter) -> Tensor:
    tensor = get(place.key)
    if place.count == 1 and not place.swapped:
        return tensor
    module, _, kind = place.key.rpartition(".")
    whole = tensor if tensor.ndim > 1 or "in_proj_" in kind else get(f"{module}.weight")
    columns = whole[0].numel() if whole.ndim > 1 else len(tensor) // 3
    if place.swapped and len(tensor) == 2 * columns:
        tensor = tensor.roll(columns, 0)
    return tensor.split(part_rows(place.key, place.count, len(tensor), columns))[place.part]


def _difference(tuned: Tensor, base: Tensor) -> Tensor | None:
    """tuned - base in float32 or wider; None if they are equal in the dtype of either, or are integers."""
    if not (tuned.is_floating_point() and base.is_floating_point()):
        return None
    dtype = torch.promote_types(wide(tuned.dtype), wide(base.dtype))
    a, b = tuned.to(dtype), base.to(dtype)
    equal = torch.equal(a, b)
    if tuned.dtype != base.dtype and not equal:
        equal = torch.equal(tuned.to(base.dtype).to(dtype), b) or torch.equal(base.to(tuned.dtype).to(dtype), a)
    return None if equal else a - b


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 1x1 convolution's shape as its linear layer's."""
    return tuple(shape[:2]) if len(shape) > 2 and math.prod(shape[2:]) == 1 else tuple(shape)
