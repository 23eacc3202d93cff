"""What an installed pack does to ComfyUI, from inside its process: prints facts as JSON.

python tests/host/install.py COMFYUI BASE MODELS PACK

BASE is an empty folder, MODELS holds the pocket model's files, PACK is the pack as custom_nodes would have it. ComfyUI
loads it by its own loader, after it has made a picture without it.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import sys
from pathlib import Path
from types import ModuleType

import torch

ROOT = str(Path(__file__).resolve().parents[2])
sys.path.append(ROOT)

from tools.inprocess import Host  # noqa: E402

sys.path.remove(ROOT)  # the pack must find its own modules

OPTIONAL = ("accelerate", "bitsandbytes", "diffusers", "matplotlib", "peft", "ray", "rich")
TORCH = ("torch", "torch.nn", "torch.nn.functional", "torch.utils.checkpoint")


def start(comfyui: Path, base: Path, models: Path) -> ModuleType:
    """ComfyUI's module `nodes`, without custom nodes, where no optional package can be imported."""
    sys.modules.update(dict.fromkeys(OPTIONAL))
    sys.path.insert(0, str(comfyui))
    settings = importlib.import_module("comfy.cli_args").args
    settings.cpu, settings.base_directory = True, str(base)
    nodes = importlib.import_module("nodes")
    for kind in ("checkpoints", "loras"):
        sys.modules["folder_paths"].add_model_folder_path(kind, str(models / kind))
    sys.modules["comfy.utils"].set_progress_bar_enabled(False)
    return nodes


def host_modules(comfyui: Path) -> list[ModuleType]:
    """What is imported of ComfyUI, and the parts of torch that packs like to replace."""
    return [
        module
        for name, module in sys.modules.items()
        if name in TORCH or str(comfyui) in (getattr(module, "__file__", None) or "")
    ]


def bindings(modules: list[ModuleType]) -> dict[str, list]:
    """What every name of these modules and of their classes is bound to, and what containers hold."""
    found = {}
    for module in modules:
        spaces = {module.__name__: module} | {
            f"{module.__name__}.{value.__qualname__}": value
            for value in vars(module).values()
            if isinstance(value, type) and value.__module__ == module.__name__
        }
        found |= {f"{space}.{key}": value for space, owner in spaces.items() for key, value in vars(owner).items()}
    return {name: contents(value) for name, value in found.items() if not isinstance(value, ModuleType)}


def contents(value: object) -> list:
    if isinstance(value, dict):
        return [value, *value, *value.values()]
    return [value, *value] if isinstance(value, (list, set)) else [value]


def changed(before: dict[str, list], after: dict[str, list]) -> list[str]:
    """Names whose objects are not the same ones; the snapshots keep them alive, so none can take another's place."""

    def identities(found: dict[str, list], name: str) -> list[int]:
        return list(map(id, found.get(name, [])))

    return sorted(name for name in before | after if identities(before, name) != identities(after, name))


def state() -> str:
    """Settings of the process that a pack could change."""
    folders = sys.modules["folder_paths"].folder_names_and_paths
    settings = vars(sys.modules["comfy.cli_args"].args)
    numbers = torch.get_default_dtype(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    return repr((settings, folders, numbers, torch.get_rng_state().tolist(), logging.root.level, sys.path))


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        logging.root.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def picture(host: Host, model, clip) -> torch.Tensor:
    """A latent of core's KSampler."""
    positive, negative = (host.run("CLIPTextEncode", clip=clip, text=text)[0] for text in ("cat", ""))
    latent = {"samples": torch.zeros(2, 4, 8, 8)}
    return host.run(
        "KSampler", model=model, positive=positive, negative=negative, latent_image=latent, seed=3, steps=4, cfg=2.0,
        sampler_name="dpmpp_2m", scheduler="normal",
    )[0]["samples"]  # fmt: skip


def use(host: Host, model, clip) -> bool:
    """Whether a few of our nodes work: a style and the acceleration added, applied and sampled."""
    lcm, style = (
        host.run("LCMLoRA_LoadVector", lora_name=f"pocket_{name}.safetensors")[0] for name in ("lcm", "style")
    )
    mix = host.run("LCMLoRA_Arithmetic", a=lcm, b=style)[0]
    fast = host.run("LCMLoRA_ApplyVector", model=model, lora=mix)[0]
    fast = host.run("LCMLoRA_ModelSampling", model=fast)[0]
    given = [host.run("CLIPTextEncode", clip=clip, text="cat")[0]] * 2
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    made = host.run("LCMLoRA_Sampler", model=fast, positive=given[0], negative=given[1], latent=latent, seed=3)[0]
    return bool(made["samples"].isfinite().all())


def comparison(host: Host) -> list[int]:
    """The shape of a picture that the pack draws."""
    lcm = host.run("LCMLoRA_LoadVector", lora_name="pocket_lcm.safetensors")[0]
    return list(host.run("LCMLoRA_Compare", a=lcm, b=lcm)[0].shape)


def main(comfyui: Path, base: Path, models: Path, pack: Path) -> dict[str, object]:
    nodes = start(comfyui, base, models)
    host = Host(nodes, nodes, nodes.NODE_CLASS_MAPPINGS)
    model, clip, _ = host.run("CheckpointLoaderSimple", ckpt_name="pocket.safetensors")
    without = picture(host, model, clip)
    modules, files, warnings = host_modules(comfyui), set(base.rglob("*")), Warnings()
    core, settings, before = dict(host.classes), state(), bindings(modules)
    facts: dict[str, object] = {
        "loaded": asyncio.run(nodes.load_custom_node(str(pack), set(core))),
        "warnings": warnings.lines,
        "added": sorted(host.classes.keys() - core.keys()),
        "replaced": [name for name, cls in core.items() if host.classes.get(name) is not cls],
        "rebound": changed(before, bindings(modules)),
        "as set": state() == settings,
        "works": use(host, model, clip),
        "comparison": comparison(host),
    }
    facts["rebound by use"] = [name for name in changed(before, bindings(modules)) if callable(before[name][0])]
    facts["files"] = [str(path) for path in base.rglob("*") if path not in files]
    facts["same picture"] = torch.equal(picture(host, model, clip), without)
    return facts


if __name__ == "__main__":
    print(json.dumps(main(*(Path(argument).resolve() for argument in sys.argv[1:]))))
