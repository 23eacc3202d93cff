"""Files that set or pad weights, and that change parameters which are no layer's weight, by our nodes and by core's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lcm_core.lora.fusion import part_rows
from lcm_core.lora.names import read_name
from tests.host.shrunken import build
from tests.host.spellings import layers
from tools.inprocess import Host

RANK, WIDTH = 2, 128
# Flux' norms in diffusers.
OF_DIFFUSERS = {
    "img_attn.norm.query_norm": "norm_q", "img_attn.norm.key_norm": "norm_k",
    "txt_attn.norm.query_norm": "norm_added_q", "txt_attn.norm.key_norm": "norm_added_k",
    "norm.query_norm": "norm_q", "norm.key_norm": "norm_k",
}  # fmt: skip


def merged(patcher: Any) -> dict[str, Tensor]:
    patcher.patch_model()
    weights = {key: weight.detach().clone() for key, weight in patcher.model.state_dict().items()}
    patcher.unpatch_model()
    return weights


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of two models' weights; infinite where a shape differs."""
    if any(one[key].shape != other[key].shape for key in one.keys() | other.keys()):
        return float("inf")
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def control_file(patcher: Any, inputs: int = 2) -> dict[str, Tensor]:
    """Black Forest Labs' names: a LoRA and a bias for every layer, `inputs` times the first layer's, whole norms."""
    generator = torch.Generator().manual_seed(5)
    file = {}
    for key, weight in layers(patcher.model).items():
        name = key.removeprefix("diffusion_model.").removesuffix(".weight")
        columns = weight.shape[1] * (inputs if name == "img_in" else 1)
        file[f"{name}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator)
        file[f"{name}.lora_B.weight"] = torch.randn(len(weight), RANK, generator=generator)
        file[f"{name}.lora_B.bias"] = torch.randn(len(weight), generator=generator)
    for key, value in patcher.model.state_dict().items():
        norm, _, _ = key.removeprefix("diffusion_model.").rpartition(".")
        if norm.endswith("_norm"):
            file[f"{norm}.scale"] = torch.randn(value.shape, generator=generator)
    return file


def in_diffusers(file: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same in diffusers' names, as its converter of these files makes them."""
    found = {}
    for key, tensor in file.items():
        if key.endswith("_norm.scale"):
            stream, block, norm = key.removesuffix(".scale").split(".", 2)
            blocks = "transformer_blocks" if stream == "double_blocks" else "single_transformer_blocks"
            found[f"transformer.{blocks}.{block}.attn.{OF_DIFFUSERS[norm]}.weight"] = tensor
            continue
        module, _, role = key.partition(".lora_")
        parts = read_name(module).parts
        if role == "A.weight" or len(parts) == 1:
            rows = [tensor] * len(parts)
        else:
            rows = tensor.split(part_rows(module, len(parts), len(tensor), WIDTH))
        for part, own in zip(parts, rows, strict=True):
            exchanged = part == "transformer.final_layer.adaLN_modulation.1"
            name = "transformer.norm_out.linear" if exchanged else part
            half = len(own) // 2 if exchanged and role != "A.weight" else 0
            found[f"{name}.lora_{role}"] = own.roll(half, 0).clone()
    return found


def control(host: Host, loras: Path) -> dict[str, Any]:
    patcher = build("Flux.1")
    before = merged(patcher)
    file = control_file(patcher)
    save_file(file, loras / "control.safetensors")
    save_file(in_diffusers(file), loras / "control diffusers.safetensors")
    narrow = control_file(patcher, 1)
    save_file(narrow, loras / "narrow.safetensors")
    first = {f"diffusion_model.{key}": narrow[key] for key in ("img_in.lora_A.weight", "img_in.lora_B.weight")}
    save_file(first, loras / "first layer.safetensors")

    def by_core(model: Any, name: str, strength: float = 1.0) -> Any:
        return host.run("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=strength)[0]

    def by_ours(model: Any, name: str, strength: float = 1.0) -> Any:
        _, lora, _, _ = host.run("LCMLoRA_Loader", model=patcher, lora_name=name)
        return host.run("LCMLoRA_ApplyVector", model=model, lora=lora, strength=strength)

    report: dict[str, Any] = {"core": [], "text": []}
    for strength in (1.0, 0.5):
        core = merged(by_core(patcher, "control.safetensors", strength))
        for name in ("control.safetensors", "control diffusers.safetensors"):
            ours, _, text, *_ = host.run("LCMLoRA_Loader", model=patcher, lora_name=name, strength=strength)
            again, *_ = by_ours(patcher, name, strength)
            report["core"] += [apart(merged(ours), core), apart(merged(again), core)]
            report["text"].append(text)
    after = merged(host.run("LCMLoRA_Loader", model=patcher, lora_name="control.safetensors")[0])
    delta = file["img_in.lora_B.weight"] @ file["img_in.lora_A.weight"]
    base = before["diffusion_model.img_in.weight"]
    padded = torch.cat([base, torch.zeros(len(base), delta.shape[1] - base.shape[1])], 1)
    report["first layer"] = float((after["diffusion_model.img_in.weight"] - padded - delta).abs().max())
    norms = {
        key: f"{key.removeprefix('diffusion_model.').rpartition('.')[0]}.scale" for key in after if "_norm." in key
    }
    report["norms"] = [len(norms), max(float((after[key] - file[name]).abs().max()) for key, name in norms.items())]
    report["left alone"] = apart(merged(patcher), before) == 0 and not patcher.patches

    in_turn = by_core(by_core(patcher, "first layer.safetensors"), "control.safetensors")
    ours = by_ours(by_ours(patcher, "first layer.safetensors")[0], "control.safetensors")[0]
    report["after a LoRA"] = apart(merged(ours), merged(in_turn))
    wide = by_ours(patcher, "control.safetensors")[0]
    report["refused"] = {}
    for name, attempt in {
        "before a LoRA": lambda: by_ours(wide, "first layer.safetensors"),
        "narrow": lambda: by_ours(wide, "narrow.safetensors"),
        "sum": lambda: host.run("LCMLoRA_LoadVector", lora_name="control.safetensors"),
    }.items():
        try:
            attempt()
        except ValueError as reason:
            report["refused"][name] = str(reason)
    return report


def wan(host: Host, loras: Path) -> dict[str, Any]:
    """A distilled Wan as it is cut out of a checkpoint: LoRAs, biases, and differences of all else."""
    patcher = build("Wan 2.1 T2V")
    generator = torch.Generator().manual_seed(6)
    file: dict[str, Tensor] = {}
    of_layers = layers(patcher.model)
    for key, value in patcher.model.state_dict().items():
        module, _, last = key.rpartition(".")
        random = torch.randn(value.shape, generator=generator)
        if not key.startswith("diffusion_model."):
            continue
        if key in of_layers and value.ndim == 2:
            file[f"{module}.lora_down.weight"] = torch.randn(RANK, value.shape[1], generator=generator)
            file[f"{module}.lora_up.weight"] = torch.randn(len(value), RANK, generator=generator)
        elif key.startswith("diffusion_model.patch_embedding."):
            continue
        elif last == "bias":
            file[f"{module}.diff_b"] = random
        else:
            file[f"{module if last == 'weight' else key}.diff"] = random
    save_file(file, loras / "wan.safetensors")
    core = merged(host.run("LoraLoaderModelOnly", model=patcher, lora_name="wan.safetensors", strength_model=0.5)[0])
    ours, lora, text, _ = host.run("LCMLoRA_Loader", model=patcher, lora_name="wan.safetensors", strength=0.5)
    total = host.run("LCMLoRA_Arithmetic", a=lora, lambda_1=0.25, b=lora, lambda_2=0.25)[0]
    summed, *_ = host.run("LCMLoRA_ApplyVector", model=patcher, lora=total, strength=1.0)
    report: dict[str, Any] = {
        "errors": [apart(merged(ours), core), apart(merged(summed), core)], "text": text,
        "modulations": sum(key.endswith("modulation.diff") for key in file),
        "changed": sum(not torch.equal(core[key], value) for key, value in merged(patcher).items()),
        "parameters": len(patcher.model.state_dict()),
    }  # fmt: skip
    embedding = patcher.model.state_dict()["diffusion_model.patch_embedding.weight"]
    rows, _, *kernel = embedding.shape
    name = "diffusion_model.patch_embedding"
    save_file(file | {f"{name}.diff": torch.randn(rows, 36, *kernel, generator=generator),
                      "diffusion_model.blocks.0.diff_m": torch.ones(1, 6, rows)},
              loras / "wan i2v.safetensors")  # fmt: skip
    try:
        host.run("LCMLoRA_Loader", model=patcher, lora_name="wan i2v.safetensors")
    except ValueError as reason:
        report["refused"] = str(reason)
    ours, _, report["left out"], _ = host.run(
        "LCMLoRA_Loader", model=patcher, lora_name="wan i2v.safetensors", strength=0.5, leave_out_misfits=True
    )
    report["errors"].append(apart(merged(ours), core))
    return report


def layers_apart(host: Host, loras: Path) -> dict[str, Any]:
    """A sum of LoRAs of q, k and v, fused as Lumina 2 has them, on OmniGen2, which has diffusers' names of Lumina 2."""
    patcher = build("OmniGen2")
    base = {
        key: weight.detach().clone()
        for key, weight in layers(patcher.model).items()
        if ".attn.to_" in key and "ref_image" not in key
    }
    generator = torch.Generator().manual_seed(7)
    file, wanted = {}, {}
    for key, weight in base.items():
        name = key.removeprefix("diffusion_model.").removesuffix(".weight")
        down, up = (torch.randn(shape, generator=generator) for shape in ((RANK, weight.shape[1]), (len(weight), RANK)))
        file |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
        wanted[key] = weight + up @ down
    save_file(file, loras / "omnigen.safetensors")
    alone, lora, text, _ = host.run("LCMLoRA_Loader", model=patcher, lora_name="omnigen.safetensors")
    total, *_ = host.run("LCMLoRA_Arithmetic", a=lora, lambda_1=0.25, b=lora, lambda_2=0.75)
    summed, summed_text, *_ = host.run("LCMLoRA_ApplyVector", model=patcher, lora=total, strength=1.0)
    found = [{key: weight for key, weight in merged(model).items() if key in base} for model in (alone, summed)]
    return {
        "layers": len(base), "errors": [apart(weights, wanted) for weights in found], "text": [text, summed_text],
        "fused": sum("qkv" in key for key in total),
    }  # fmt: skip


def packed(targets: Any) -> dict[str, Any]:
    """Places of a LoRA's modules in a model before and after its fused weights are packed, layers of linear kind and
    such as tell nothing of their size.
    """
    import comfy.lora

    patcher = build("HunyuanVideo")
    key_map = comfy.lora.model_lora_keys_unet(patcher.model, {})
    places = targets.model_targets(patcher.model, key_map)
    fused = {name: module for name, module in patcher.model.named_modules() if name.endswith((".qkv", ".linear1"))}
    report: dict[str, Any] = {"fused": len(fused)}
    floating = {name: module.weight for name, module in fused.items()}

    def pack(make: Callable[[Tensor], Tensor]) -> bool:
        """Whether every module is where it was."""
        for name, module in fused.items():
            module.weight = torch.nn.Parameter(make(floating[name].data), requires_grad=False)
        return targets.model_targets(patcher.model, key_map) == places

    report["4-bit"] = pack(lambda weight: torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8))
    report["flat"] = pack(lambda weight: torch.zeros(weight.numel() // 2, dtype=torch.uint8))
    report["fp8"] = pack(lambda weight: weight.to(torch.float8_e4m3fn))
    for name in fused:
        parent, _, last = name.rpartition(".")
        weight = torch.zeros(floating[name].numel() // 2, 1, dtype=torch.uint8)
        setattr(patcher.model.get_submodule(parent), last, Unsized(weight))
    found = targets.model_targets(patcher.model, key_map)
    parts = {name for name, place in places.items() if isinstance(place, tuple) and place[1]}
    report["unsized"] = {
        "whole": all(found[name] == place for name, place in places.items() if name not in parts),
        "parts": len(parts & found.keys()),
    }
    whole = read_name(next(iter(fused))).name
    try:
        targets.find_targets(patcher.model, found, {f"{whole}.weight": (7, 9)})
    except ValueError as error:
        report["unsized"]["said"] = str(error)
    return report


class Unsized(torch.nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
