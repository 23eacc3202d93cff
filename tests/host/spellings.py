"""One LoRA in every spelling that the host knows, on a shrunken model of every architecture, in ComfyUI's own Python.

python -m tests.host.spellings COMFYUI FOLDER    prints a table and writes FOLDER/report.json

Every layer of a model gets a LoRA. A spelling's names, and the rows of a fused weight that they mean, are those of the
host's own key map, where it cuts the weight whole; the reference is W + Delta W, multiplied out. test_spellings.py runs
this and judges the report.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lcm_core.lora import LoRAVector
from lcm_core.lora.fusion import part_rows
from tests.host.shrunken import ARCHITECTURES, build, there
from tools.inprocess import load_host

PREFIXES = ("diffusion_model.", "transformer.", "base_model.model.", "unet.base_model.model.", "lora_unet_",
            "lora_transformer_", "lycoris_", "unet.")  # fmt: skip
RANK = 2


def layers(model: torch.nn.Module) -> dict[str, Tensor]:
    """Key of every weight that a LoRA is made for -> the weight."""
    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, kinds) and getattr(module, "groups", 1) == 1
    }


class File(NamedTuple):
    """A LoRA file, Delta W of every weight that it changes, and whether the host's map cuts a fused weight wrongly;
    None where the names are not from that map.
    """

    tensors: dict[str, Tensor]
    deltas: dict[str, Tensor]
    misread: bool | None


def spellings(key_map: dict[str, Any], loras: dict[str, tuple[Tensor, Tensor]]) -> dict[str, File]:
    """Prefix of the host's names -> a file of the LoRAs under them, whose parts have rows of a fused weight's `up`."""
    named: dict[str, dict[str, dict[str, tuple]]] = {}
    for name, target in key_map.items():
        key, offset, *function = (target, None) if isinstance(target, str) else target
        if key in loras:
            prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "") or "bare"
            whole = f"{prefix} split" if offset is not None and prefix == "diffusion_model." else prefix
            while offset is None and key in named.get(whole, {}):
                whole += " again"
            named.setdefault(whole, {}).setdefault(key, {})[name] = (offset, function)
    return {prefix: write(places, loras) for prefix, places in named.items()}


def others(files: dict[str, File]) -> dict[str, File]:
    """The same LoRA in spellings that trainers and programs write and the host's map may lack."""
    native = files["diffusion_model."]
    diffusers = LoRAVector.from_state_dict(native.tensors).state_dict("peft")
    tensors = {
        "bare, native": {key.removeprefix("diffusion_model."): tensor for key, tensor in native.tensors.items()},
        "diffusers": diffusers,
        "base_model, diffusers": {
            key.replace("transformer.", "base_model.model.", 1): tensor for key, tensor in diffusers.items()
        },
        "lora_unet__": {
            key.replace("lora_unet_", "lora_unet__", 1): tensor for key, tensor in files["lora_unet_"].tensors.items()
        },
    }
    return {name: File(found, native.deltas, None) for name, found in tensors.items()}


def write(places: dict[str, dict[str, tuple]], loras: dict[str, tuple[Tensor, Tensor]]) -> File:
    tensors, deltas, misread = {}, {}, False
    for key, names in places.items():
        down, up = loras[key]
        ranges = {name: offset[1:] if offset else (0, len(up)) for name, (offset, _) in names.items()}
        if len(ranges) > 1 and sum(length for _, length in ranges.values()) != len(up):
            misread = True
            rows = part_rows(key, len(ranges), len(up), down[0].numel())
            starts = [0, *accumulate(rows)]
            ranges = dict(zip(sorted(ranges, key=ranges.__getitem__), zip(starts, rows, strict=False), strict=True))
        deltas[key] = torch.zeros(len(up), *down.shape[1:])
        for name, (start, length) in ranges.items():
            part = up[start : start + length]
            deltas[key][start : start + length] = (part.flatten(1) @ down.flatten(1)).reshape(-1, *down.shape[1:])
            for exchange in names[name][1]:
                part = exchange(part)
            flattened = "." not in name
            one, other = ("lora_down", "lora_up") if flattened else ("lora_A", "lora_B")
            tensors |= {f"{name}.{one}.weight": down.clone(), f"{name}.{other}.weight": part.contiguous()}
            if flattened:
                tensors[f"{name}.alpha"] = torch.tensor(float(RANK))
    return File(tensors, deltas, misread)


def merged(patcher: Any) -> dict[str, Tensor]:
    patcher.patch_model()
    weights = {key: weight.detach().clone() for key, weight in layers(patcher.model).items()}
    patcher.unpatch_model()
    return weights


def error(weights: dict[str, Tensor], wanted: dict[str, Tensor], base: dict[str, Tensor]) -> float:
    """|| merged - wanted || over || wanted - base ||."""
    off = sum(float((weights[key] - wanted[key]).double().square().sum()) for key in base)
    size = sum(float((wanted[key] - base[key]).double().square().sum()) for key in base)
    return (off / size) ** 0.5


def examine(name: str, apply_vector: Callable, lora_tensors: Callable) -> dict[str, Any]:
    import comfy.lora
    import comfy.lora_convert

    patcher = build(name)
    base = {key: weight.detach().clone() for key, weight in layers(patcher.model).items()}
    generator = torch.Generator().manual_seed(1)
    factors = {
        key: (
            torch.randn(RANK, *weight.shape[1:], generator=generator),
            torch.randn(len(weight), RANK, *[1] * (weight.ndim - 2), generator=generator),
        )
        for key, weight in base.items()
    }
    key_map = comfy.lora.model_lora_keys_unet(patcher.model, {})
    files = spellings(key_map, factors)
    files |= others(files)

    def wanted(*several: str) -> dict[str, Tensor]:
        total = {key: weight.clone() for key, weight in base.items()}
        for spelling in several:
            for key, delta in files[spelling].deltas.items():
                total[key] += delta
        return total

    def by_core(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> float | str:
        core = patcher.clone()
        core.add_patches(comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(tensors)), key_map), 1.0)
        try:
            return error(merged(core), wanted, base)
        except RuntimeError as raised:
            core.unpatch_model()
            return str(raised)

    def by_ours(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
        ours, _, line = apply_vector(patcher, tensors, 1.0, "file")
        return merged(ours), line

    vectors = {spelling: LoRAVector.from_state_dict(file.tensors) for spelling, file in files.items()}
    report: dict[str, Any] = {"layers": len(base), "spellings": {}, "sums": {}, "saved": {}}
    for spelling, file in files.items():
        weights, line = by_ours(file.tensors)
        report["spellings"][spelling] = {
            "layers": len(file.deltas), "misread": file.misread, "line": line,
            "ours": error(weights, wanted(spelling), base),
            "core": by_core(file.tensors, wanted(spelling)),
        }  # fmt: skip
    whole = vectors["diffusion_model."]
    for spelling, vector in vectors.items():
        same = LoRAVector({name: whole.modules[name] for name in vector.modules})
        report["spellings"][spelling]["apart"] = (vector - same).norm() / same.norm()
    for one, other in pairwise([*files, next(iter(files))]):
        total = lora_tensors(vectors[one] + vectors[other], {})
        report["sums"][f"{one} + {other}"] = error(by_ours(total)[0], wanted(one, other), base)
    for dialect in ("native", "kohya", "peft"):
        file = vectors["diffusion_model."].state_dict(dialect)
        report["saved"][dialect] = {
            "ours": error(by_ours(file)[0], wanted("diffusion_model."), base),
            "core": by_core(file, wanted("diffusion_model.")),
            "tensors": len(file),
        }
    return report


def shown(error: float | str) -> str:
    return error if isinstance(error, str) else f"{error:.1e}"


def main() -> None:
    comfyui, folder = map(Path, sys.argv[1:])
    load_host(comfyui, folder)
    loras, lora_model = (sys.modules[f"lcm_lora_pack.nodes.host.{name}"] for name in ("loras", "lora_model"))
    report = {}
    for name in filter(there, ARCHITECTURES):
        with torch.no_grad():
            found = report[name] = examine(name, loras.apply_vector, lora_model.LoRATensors)
        print(f"{name}: {found['layers']} layers; the worst sum of two neighbours {max(found['sums'].values()):.1e}")
        for spelling, row in found["spellings"].items():
            line = f"  {spelling:24} {row['layers']:4} layers, ours {row['ours']:.1e}, core {shown(row['core'])}"
            print(line + (", the host cuts it wrongly" if row["misread"] else ""))
        for dialect, row in found["saved"].items():
            line = f"  saved as {dialect:15} {row['tensors']:4} tensors, ours {row['ours']:.1e}"
            print(f"{line}, core {shown(row['core'])}")
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
