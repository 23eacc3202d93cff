"""What several templates share: files, the models that one is made for, and nodes that load, prompt and sample."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from .graph import Graph, Node, Output
from .models import downloads

POCKET, LCM, STYLE = "pocket.safetensors", "pocket_lcm.safetensors", "pocket_style.safetensors"
SIZE = 128  # pixels of the pocket model's pictures
SD15, SD15_LCM = "v1-5-pruned-emaonly-fp16.safetensors", "lcm-lora-sdv1-5.safetensors"
SDXL, SDXL_LCM = "sd_xl_base_1.0.safetensors", "lcm-lora-sdxl.safetensors"
PAPERCUT = "papercut.safetensors"  # the style of the paper's figure 3
EXAMPLE = "example.png"  # the picture that ComfyUI has in its input folder
NEGATIVE = "Negative (unused at cfg 1)"
WORDS = """### The pocket model's words

animal, fruit, face, vehicle, flower, food, sport, sky; cat, panda, apple, rocket, pizza …; a background: white,
yellow, green, blue, pink, black, purple, orange. Other words are ignored."""

Value = TypeVar("Value")


class Setting(Protocol):
    """Which of two values a template has: a released model's, which ships, or the pocket model's."""

    def __call__(self, released: Value, pocket: Value) -> Value: ...


def for_released(released: Value, pocket: Value) -> Value:
    return released


def for_pocket(released: Value, pocket: Value) -> Value:
    return pocket


def files(on: Setting, *names: str) -> str:
    """The note of the files that a template loads."""
    return on(f"### Files\n\n{downloads(*names)}", WORDS)


def prompts(graph: Graph, clip: Output, text: str, negative: str = NEGATIVE) -> tuple[Node, Node]:
    """(the prompt, an empty one of that title)"""
    return (
        graph.add("CLIPTextEncode", "Prompt", clip=clip, text=text),
        graph.add("CLIPTextEncode", negative, clip=clip, text=""),
    )


def sd15(graph: Graph, on: Setting, text: str, negative: str = NEGATIVE) -> tuple[Node, Node, tuple[Node, Node]]:
    """(Load Checkpoint, Load Acceleration LoRA, prompts) of Stable Diffusion 1.5."""
    base = graph.add("CheckpointLoaderSimple", ckpt_name=on(SD15, POCKET))
    fast = graph.add("LCMLoRA_Loader", model=base, lora_name=on(SD15_LCM, LCM))
    return base, fast, prompts(graph, base[1], text, negative)


def empty(graph: Graph, size: int, batch: int = 1) -> Node:
    return graph.add("EmptyLatentImage", width=size, height=size, batch_size=batch)


def sampled(graph: Graph, model: Node, texts: tuple[Node, Node], latent: Node, vae: Output, **options: Any):
    """(LCM Sampler, VAE Decode)"""
    options = {"seed": 7, "steps": 4, "cfg": 1.0} | options
    sampler = graph.add(
        "LCMLoRA_Sampler", model=model, positive=texts[0], negative=texts[1], latent=latent, **options
    )  # fmt: skip
    return sampler, graph.add("VAEDecode", samples=sampler, vae=vae)
