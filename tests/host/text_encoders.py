"""Which weight each name of a text encoder means to the host, and to us, in ComfyUI's own Python.

python -m tests.host.text_encoders COMFYUI FOLDER    writes FOLDER/report.json

The encoders are the host's own, of their real sizes and without storage. test_text_encoders.py runs this and judges it.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from lcm_core.lora.names import flat, read_name
from tools.inprocess import load_host

# What a checkpoint's loader makes of the encoders -> module of comfy.text_encoders, and its class or what returns it.
ENCODERS = {
    "Flux": ("flux", "FluxClipModel"),
    "Stable Diffusion 3": ("sd3_clip", "SD3ClipModel"),
    "PixArt": ("pixart_t5", "PixArtT5XXL"),
    "Wan": ("wan", "te()"),
    "HiDream": ("hidream", "HiDreamTEModel"),
    "HunyuanVideo": ("hunyuan_video", "hunyuan_video_clip()"),
    "HunyuanDiT": ("hydit", "HyditModel"),
    "Lumina 2": ("lumina2", "te()"),
    "Z-Image": ("z_image", "te()"),
    "Qwen-Image": ("qwen_image", "te()"),
    "Kandinsky 5": ("kandinsky5", "te()"),
    "Anima": ("anima", "te()"),
}


def examine(module: str, kind: str, targets: Any) -> dict[str, Any]:
    """How many weights and names the host's key map has, and of those that we don't find at the same weight a few."""
    import comfy.lora

    made = getattr(importlib.import_module(f"comfy.text_encoders.{module}"), kind.removesuffix("()"))
    with torch.device("meta"):
        model = (made() if kind.endswith("()") else made)(device="meta", dtype=torch.float32)
    key_map = comfy.lora.model_lora_keys_clip(model, {})
    found = targets.model_targets(model, key_map)
    names = {name: flat(read_name(name).name) for name in key_map}
    lost = [name for name, target in key_map.items() if found.get(names[name]) != target]
    known = {canonical for canonical in names.values() if canonical.startswith("text_encoder_")}
    return {"weights": len(set(key_map.values())), "names": len(key_map), "known": len(known), "lost": lost[:5]}


def main() -> None:
    comfyui, folder = map(Path, sys.argv[1:])
    load_host(comfyui, folder)
    targets = sys.modules["lcm_lora_pack.nodes.host.targets"]
    report = {}
    for name, (module, kind) in ENCODERS.items():
        if importlib.util.find_spec(f"comfy.text_encoders.{module}"):
            report[name] = examine(module, kind, targets)
            print(name, report[name])
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
