"""ComfyUI inside this process, without its server, and this pack in it, loaded by file location as the host loads it.

    host = load_host(Path("ComfyUI"), Path("base"))
    model, clip, vae = host.run("CheckpointLoaderSimple", ckpt_name="pocket.safetensors")
    (latent,) = host.run("LCMLoRA_Sampler", model=model, positive=positive, negative=negative, latent=empty, seed=1)

It runs on the CPU, in the Python that has ComfyUI's dependencies, once in a process. For benchmarks and tests that need
the objects between nodes; tools/host_process.py starts the real server.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
PACK = "lcm_lora_pack"


@dataclass(frozen=True)
class Host:
    """ComfyUI's module `nodes`, this pack's module, and core's and our node classes by node id."""

    nodes: ModuleType
    pack: ModuleType
    classes: dict[str, type]

    def own_nodes(self) -> dict[str, Any]:
        """This pack's nodes as /object_info describes them."""
        return {key: cls.GET_NODE_INFO_V1() for key, cls in self.classes.items() if key.startswith("LCMLoRA_")}

    def run(self, node: str | type, **inputs: Any) -> tuple:
        """The outputs of a node: an id from `classes`, or any V1 or V3 class, such as one of `comfy_extras`.

        As in the host's executor, torch.inference_mode is on and an input that is not given has its widget's default.
        Unlike there, ranges and types are not checked.
        """
        cls = self.classes[node] if isinstance(node, str) else node
        declared = cls.INPUT_TYPES()
        specs = {**declared.get("required", {}), **declared.get("optional", {})}
        defaults = {name: spec[1]["default"] for name, spec in specs.items() if "default" in dict(*spec[1:])}
        with torch.inference_mode():
            if hasattr(cls, "define_schema"):
                return cls.EXECUTE_NORMALIZED(**defaults | inputs).args
            return getattr(cls(), cls.FUNCTION)(**defaults | inputs)


def load_host(comfyui: Path, base: Path) -> Host:
    """Import the ComfyUI of the folder `comfyui`, with its models, input and output under `base`, and then this pack.

    RuntimeError if something named like a module of ComfyUI is imported already: its settings are read on import, and
    this repository has a package `nodes` too.
    """
    if early := sorted({"comfy", "folder_paths", "nodes"} & sys.modules.keys()):
        raise RuntimeError(f"{', '.join(early)} imported already; call load_host first, once, in a process of its own")
    sys.path.insert(0, str(comfyui.resolve()))
    settings = importlib.import_module("comfy.cli_args").args
    settings.cpu = True
    settings.base_directory = str(base.resolve())
    nodes = importlib.import_module("nodes")
    sys.modules["comfy.utils"].set_progress_bar_enabled(False)
    pack = load_pack()
    extension = asyncio.run(pack.comfy_entrypoint())
    ours = {cls.GET_SCHEMA().node_id: cls for cls in asyncio.run(extension.get_node_list())}
    return Host(nodes, pack, nodes.NODE_CLASS_MAPPINGS | ours)


def load_host_of_arguments(about: str | None) -> Host:
    """The host of a tool's command line, COMFYUI BASE; `about` is the tool's help."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("base", type=Path)
    args = parser.parse_args()
    return load_host(args.comfyui, args.base)


def load_pack() -> ModuleType:
    """This repository as the package `lcm_lora_pack`; its modules are `lcm_lora_pack.nodes.sampling` and so on."""
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    pack = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = pack
    spec.loader.exec_module(pack)
    return pack


def message(act: Callable[[], object]) -> str:
    """What the ValueError says that act() raises; "no error" if it raises none."""
    try:
        act()
    except ValueError as error:
        return str(error)
    return "no error"
