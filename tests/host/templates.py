"""Templates of large models on shrunken networks, each against core's own nodes set by hand: prints facts as JSON.

python -m tests.host.templates COMFYUI BASE

A graph runs as it is shipped, at a small size. The files that it loads stand in the folder under their names, the LoRAs
with random factors; the loaders of networks and autoencoders give shrunken ones with random weights, and a prompt is
random words.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from tests.host.accelerators import Log, flow_model
from tests.host.features import Watched, extra, largest
from tools.inprocess import Host, load_host
from tools.templates import TEMPLATES
from tools.templates.graph import Template

ROOT = Path(__file__).resolve().parents[2]
SMALL = {1024: 64, 1328: 64, 640: 64, 81: 5}
# Nodes of the host's comfy_extras, and the module of each.
EXTRAS = {
    "FluxGuidance": "nodes_flux",
    "EmptySD3LatentImage": "nodes_sd3",
    "EmptyHunyuanLatentVideo": "nodes_hunyuan",
    "ModelSamplingAuraFlow": "nodes_model_advanced",
    "ModelSamplingSD3": "nodes_model_advanced",
    "CreateVideo": "nodes_video",
}


Node = Callable[[Mapping[str, Any]], tuple]


class Network(NamedTuple):
    """The class of comfy.supported_models, the widths of words and pooled words, layers that the LoRA has, and what
    core's nodes do by hand: the node that shifts, and the shift."""

    config: str
    words: int
    pooled: int
    layers: tuple[str, ...]
    shifted_by: tuple[str, float] | None = None


NETWORKS = {
    "Flux.1": Network("Flux", 64, 48, ("double_blocks.0.img_attn.proj", "single_blocks.1.linear2")),
    "Qwen-Image": Network(
        "QwenImage", 48, 0, ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.img_mlp.net.2"),
        ("ModelSamplingAuraFlow", 3.0),
    ),
    "Wan 2.1 T2V": Network(
        "WAN21_T2V", 48, 0, ("blocks.0.self_attn.q", "blocks.1.ffn.2"), ("ModelSamplingSD3", 5.0)
    ),
}  # fmt: skip


def autoencoder(name: str) -> Any:
    """A small VAE of the network's kind with random weights, as the host makes it of a file."""
    if name == "Flux.1":
        state = importlib.import_module("comfy.taesd.taesd").TAESD(latent_channels=16).state_dict()
    else:
        kind = importlib.import_module("comfy.ldm.wan.vae").WanVAE
        state = kind(dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], temperal_downsample=[False, True, True]).state_dict()
        generator = torch.Generator().manual_seed(2)
        state = {key: 0.1 * torch.randn(value.shape, generator=generator) for key, value in state.items()}
    return importlib.import_module("comfy.sd").VAE(sd=state)


class Shrunken:
    """What the loaders of a graph give, and what its text encoder makes of a prompt."""

    def __init__(self, name: str) -> None:
        self.name, self.network, self.vae = name, NETWORKS[name], autoencoder(name)
        self.models: dict[str, Any] = {}

    def model(self, file: str) -> Any:
        """The network of a file, whose weights are the file's own."""
        if file not in self.models:
            made, generator = flow_model(self.name, self.network.config), torch.Generator().manual_seed(len(file))
            for parameter in made.model.parameters():
                parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
            self.models[file] = made
        return self.models[file]

    def words(self, text: str) -> list:
        generator = torch.Generator().manual_seed(len(text))
        pooled = {"pooled_output": torch.randn(1, self.network.pooled, generator=generator)}
        return [[torch.randn(1, 6, self.network.words, generator=generator), pooled if self.network.pooled else {}]]

    def instead(self) -> dict[str, Node]:
        """Class of a node -> what it gives of its inputs."""
        return {
            "CheckpointLoaderSimple": lambda given: (self.model(given["ckpt_name"]), None, self.vae),
            "UNETLoader": lambda given: (self.model(given["unet_name"]),),
            "CLIPLoader": lambda given: (None,),
            "VAELoader": lambda given: (self.vae,),
            "CLIPTextEncode": lambda given: (self.words(given["text"]),),
        }

    def write_lora(self, path: Path) -> None:
        shapes = {key: value.shape for key, value in self.model("any").model_state_dict().items()}
        generator, tensors = torch.Generator().manual_seed(len(path.name)), {}
        for layer in self.network.layers:
            rows, columns = shapes[f"diffusion_model.{layer}.weight"]
            for role, shape in (("lora_down", (4, columns)), ("lora_up", (rows, 4))):
                tensors[f"diffusion_model.{layer}.{role}.weight"] = 0.2 * torch.randn(shape, generator=generator)
        save_file(tensors, path)


class Run:
    """An API graph, each of whose nodes runs once, when its outputs are asked for."""

    def __init__(self, host: Host, graph: Mapping[str, Any], instead: Mapping[str, Node]) -> None:
        self.host, self.graph, self.instead = host, graph, instead
        self.done: dict[str, tuple] = {}

    def outputs(self, key: str) -> tuple:
        if key not in self.done:
            kind, inputs = self.graph[key]["class_type"], self.graph[key]["inputs"]
            given = {
                name: self.outputs(value[0])[value[1]] if isinstance(value, list) else value
                for name, value in inputs.items()
            }
            if kind in self.instead:
                self.done[key] = self.instead[kind](given)
            else:
                self.done[key] = self.host.run(extra(EXTRAS[kind], kind) if kind in EXTRAS else kind, **given)
        return self.done[key]

    def of(self, kind: str) -> list[tuple]:
        """The outputs of the nodes of a class, in the graph's order."""
        return [self.outputs(key) for key, node in self.graph.items() if node["class_type"] == kind]


def by_hand(graph: Mapping[str, Any], network: Network, steps: int) -> dict[str, Any]:
    """The graph with core's nodes in the place of ours: its LoRA loader and shift, and Euler on the simple schedule."""
    made: dict[str, Any] = {}
    for key, node in graph.items():
        inputs = node["inputs"]
        if node["class_type"] == "LCMLoRA_Loader":
            lora = {"model": inputs["model"], "lora_name": inputs["lora_name"], "strength_model": inputs["strength"]}
            made[key] = {"class_type": "LoraLoaderModelOnly", "inputs": lora}
            if network.shifted_by:
                kind, shift = network.shifted_by
                made[f"{key} lora"] = made.pop(key)
                made[key] = {"class_type": kind, "inputs": {"model": [f"{key} lora", 0], "shift": shift}}
        elif node["class_type"] == "LCMLoRA_Sampler":
            switches = {name: "enable" if inputs[name] else "disable"
                        for name in ("add_noise", "return_with_leftover_noise")}  # fmt: skip
            same = {name: inputs[name] for name in ("model", "positive", "negative", "start_at_step", "end_at_step")}
            made[key] = {"class_type": "KSamplerAdvanced", "inputs": {
                **same, **switches, "latent_image": inputs["latent"], "noise_seed": inputs["seed"], "steps": steps,
                "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple",
            }}  # fmt: skip
        else:
            made[key] = node
    return made


def examine(host: Host, template: Template, folder: Path, log: Log) -> dict[str, Any]:
    path = ROOT / "workflows" / "api" / f"{template.name}.json"
    graph = json.loads(path.read_text(encoding="utf-8"))
    for node in graph.values():
        node["inputs"] = {
            name: value if isinstance(value, list) else SMALL.get(value, value)
            for name, value in node["inputs"].items()
        }
    shrunken = Shrunken(str(template.network))
    instead = shrunken.instead()
    for node in graph.values():
        if node["class_type"] == "LCMLoRA_Loader":
            shrunken.write_lora(folder / node["inputs"]["lora_name"])
    importlib.import_module("folder_paths").filename_list_cache.clear()
    watched: list[Watched] = []

    def sampler(given: Mapping[str, Any]) -> tuple:
        watched.append(Watched(given["model"]))
        return host.run("LCMLoRA_Sampler", **{**given, "model": watched[-1].model})

    log.clear()
    run = Run(host, graph, {**instead, "LCMLoRA_Sampler": sampler})
    made = run.of("LCMLoRA_Sampler")[-1][0]["samples"]
    levels = [float(sigma[0]) for each in watched for _, sigma, _ in each.calls]
    warnings = log.taken()
    core = Run(host, by_hand(graph, shrunken.network, len(levels)), instead).of("KSamplerAdvanced")[-1][0]["samples"]
    bare = Run(host, graph, {**instead, "LCMLoRA_Loader": lambda given: (given["model"], None, "", None)})
    return {
        "reports": [report for _, _, report, _ in run.of("LCMLoRA_Loader")],
        "warnings": warnings,
        "calls": [len(each.calls) for each in watched],
        "rows": sum(each.rows for each in watched),
        "levels": levels,
        "apart": largest(made, core) / core.abs().max().item(),
        "without": largest(made, bare.of("LCMLoRA_Sampler")[-1][0]["samples"]) / core.abs().max().item(),
        "pictures": list(run.of("VAEDecode")[0][0].shape),
        "videos": [str(video.get_components().frame_rate) for (video,) in run.of("CreateVideo")],
    }


def main() -> None:
    host, log = load_host(Path(sys.argv[1]), Path(sys.argv[2])), Log()
    with tempfile.TemporaryDirectory() as folder:
        importlib.import_module("folder_paths").add_model_folder_path("loras", folder)
        facts = {t.name: examine(host, t, Path(folder), log) for t in TEMPLATES if t.network}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
