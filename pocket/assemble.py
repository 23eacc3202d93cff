"""Assemble the pocket checkpoint and its LoRAs for the host from the weights that are shipped.

`python -m pocket.assemble --checkpoints DIR --loras DIR` writes `pocket.safetensors`, which the stock
CheckpointLoaderSimple loads as Stable Diffusion 1.5, `pocket_lcm.safetensors` and `pocket_style.safetensors` in kohya
names, and `pocket_merged.safetensors`, the checkpoint with both in it. The text encoder has CLIP-L's shape and is
nearly all zeros: the files are sparse, about 25 MB on disk.
"""

import argparse
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from lcm_core.lora import Factors, LoRAVector, canonical_name

from . import autoencoder, teacher, unet
from .data import WORDS

HERE = Path(__file__).parent
LORAS = {f"pocket_{name}": HERE / "weights" / f"{name}_lora.safetensors" for name in ("lcm", "style")}
MERGED = {"lcm": 1.0, "style": 0.8}  # λ of each LoRA in the merged checkpoint
VOCABULARY, CLIP_WIDTH, CLIP_HIDDEN, CLIP_LAYERS = 49408, 768, 3072, 12
WORD_TOKENS = HERE / "word_tokens.json"  # word -> row of CLIP's token table


def text_encoder(table: Tensor) -> dict[str, Tensor | tuple[int, ...]]:
    """CLIP-L's weights with prefix; a shape stands for a tensor of zeros."""
    tokens = json.loads(WORD_TOKENS.read_text())
    rows = torch.zeros(VOCABULARY, CLIP_WIDTH, dtype=torch.float16)
    rows[[tokens[word] for word in WORDS]] = table.half()
    weights: dict[str, Tensor | tuple[int, ...]] = {
        "embeddings.token_embedding.weight": rows,
        "embeddings.position_embedding.weight": (77, CLIP_WIDTH),
        "final_layer_norm.weight": torch.ones(CLIP_WIDTH, dtype=torch.float16),
        "final_layer_norm.bias": (CLIP_WIDTH,),
    }
    square, wide = (CLIP_WIDTH, CLIP_WIDTH), (CLIP_HIDDEN, CLIP_WIDTH)
    for i in range(CLIP_LAYERS):
        layer = f"encoder.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            weights |= {f"{layer}self_attn.{name}.weight": square, f"{layer}self_attn.{name}.bias": (CLIP_WIDTH,)}
        weights |= {f"{layer}mlp.fc1.weight": wide, f"{layer}mlp.fc1.bias": (CLIP_HIDDEN,)}
        weights |= {f"{layer}mlp.fc2.weight": wide[::-1], f"{layer}mlp.fc2.bias": (CLIP_WIDTH,)}
        for name in ("layer_norm1", "layer_norm2"):
            weights |= {f"{layer}{name}.weight": (CLIP_WIDTH,), f"{layer}{name}.bias": (CLIP_WIDTH,)}
    return {f"cond_stage_model.transformer.text_model.{key}": value for key, value in weights.items()}


def checkpoint() -> dict[str, Tensor | tuple[int, ...]]:
    """Every weight of the pocket checkpoint in float16, under SD1.5's names."""
    weights = load_file(teacher.WEIGHTS)
    table = weights.pop("words.table")
    tensors: dict[str, Tensor | tuple[int, ...]] = {
        f"model.diffusion_model.{key}": value.half() for key, value in unet.host_state_dict(weights).items()
    }
    for key, value in autoencoder.host_state_dict(load_file(autoencoder.WEIGHTS)).items():
        tensors[f"first_stage_model.{key}"] = value.half() if value.ndim else value
    return tensors | text_encoder(table)


def merged(weights: Mapping[str, Tensor | tuple[int, ...]], vector: LoRAVector) -> dict[str, Tensor | tuple[int, ...]]:
    """A checkpoint's weights with W + ΔW in place of each W that the vector changes."""
    where = paths()
    names = {f"model.diffusion_model.{where[name]}.weight": name for name in vector.modules}
    return {
        key: (value.float() + vector.delta(names[key])).half() if key in names and isinstance(value, Tensor) else value
        for key, value in weights.items()
    }


def full_lcm() -> dict[str, Tensor | tuple[int, ...]]:
    """For tests, what a full LCM's file has: a UNet, with the LCM-LoRA in it, and a `cond_proj` of random weights."""
    prefix = "model.diffusion_model."
    weights = merged(checkpoint(), lora_vector(LORAS["pocket_lcm"]))
    projection = 0.1 * torch.randn(unet.HOST_WIDTH, 256, generator=torch.Generator().manual_seed(0))
    parts = {key: value for key, value in weights.items() if key.startswith(prefix)}
    return {**parts, f"{prefix}time_embed.cond_proj.weight": projection.half()}


def write_sparse(path: Path, tensors: dict[str, Tensor | tuple[int, ...]]) -> None:
    """A safetensors file in which zeros are holes: runs of zero bytes are skipped, not written."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", "modelspec.title": "Pocket emoji model"}}
    names = {torch.float16: "F16", torch.float32: "F32"}
    offset = 0
    for key, value in tensors.items():
        shape = tuple(value.shape) if isinstance(value, Tensor) else value
        dtype = value.dtype if isinstance(value, Tensor) else torch.float16
        size = math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key, value in tensors.items():
            if isinstance(value, Tensor):
                data = value.contiguous().view(-1).numpy().tobytes()
                begin = start + header[key]["data_offsets"][0]  # type: ignore[index]
                for at in range(0, len(data), 4096):
                    block = data[at : at + 4096]
                    if block.strip(b"\0"):
                        file.seek(begin + at)
                        file.write(block)
        file.truncate(start + offset)


def lora_vector(path: Path) -> LoRAVector:
    """A shipped LoRA of the narrow UNet, padded to the host's width."""
    vector, where = LoRAVector.load(path), paths()
    modules = {
        name: Factors(*unet.host_factors(where[name], factors.down, factors.up), factors.alpha)
        for name, factors in vector.modules.items()
    }
    return LoRAVector(modules, metadata=vector.metadata)


def paths() -> dict[str, str]:
    """The canonical name of each of the UNet's layers -> its path."""
    layers = {name.rpartition(".")[0] for name in unet.host_shapes()}
    return {canonical_name(layer): layer for layer in layers}


def merged_vector() -> LoRAVector:
    """What `pocket_merged.safetensors` adds to `pocket.safetensors`."""
    lcm, style = (MERGED[name] * lora_vector(LORAS[f"pocket_{name}"]) for name in ("lcm", "style"))
    return lcm + style


def fingerprint(*sources: Path) -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes() + Path(unet.__file__).read_bytes())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()


def written(path: Path, mark: str, write: Callable[[Path], None]) -> None:
    """Write `path` unless the stamp beside it says that it was made from the same sources; beside, then renamed."""
    stamp = path.with_suffix(".stamp")
    if path.exists() and stamp.exists() and stamp.read_text() == mark:
        return
    part = path.with_name(f"part-{path.name}")
    write(part)
    os.replace(part, path)
    stamp.write_text(mark)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--loras", type=Path, required=True)
    args = parser.parse_args()
    for folder in (args.checkpoints, args.loras):
        folder.mkdir(parents=True, exist_ok=True)
    sources = (teacher.WEIGHTS, autoencoder.WEIGHTS, WORD_TOKENS)
    written(args.checkpoints / "pocket.safetensors", fingerprint(*sources),
            lambda path: write_sparse(path, checkpoint()))  # fmt: skip
    written(args.checkpoints / "pocket_merged.safetensors", fingerprint(*sources, *LORAS.values()),
            lambda path: write_sparse(path, merged(checkpoint(), merged_vector())))  # fmt: skip
    for name, source in LORAS.items():
        written(args.loras / f"{name}.safetensors", fingerprint(source),
                lambda path, source=source: lora_vector(source).save(path, dtype=torch.float16))  # fmt: skip


if __name__ == "__main__":
    main()
