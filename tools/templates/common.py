"""What several templates share: the pocket model's files, and the nodes that load, prompt and sample."""

from __future__ import annotations

from typing import Any

from .graph import Graph, Node, Output

POCKET, LCM, STYLE = "pocket.safetensors", "pocket_lcm.safetensors", "pocket_style.safetensors"
SIZE = 128  # pixels of its pictures
NEGATIVE = "Negative (unused at cfg 1)"
WORDS = """### The pocket model's words

animal, fruit, face, vehicle, flower, food, sport, sky; cat, panda, apple, rocket, pizza …; a background: white,
yellow, green, blue, pink, black, purple, orange. Other words are ignored."""


def prompts(graph: Graph, clip: Output, text: str) -> tuple[Node, Node]:
    return (
        graph.add("CLIPTextEncode", "Prompt", clip=clip, text=text),
        graph.add("CLIPTextEncode", NEGATIVE, clip=clip, text=""),
    )


def pocket(graph: Graph, text: str) -> tuple[Node, Node, tuple[Node, Node]]:
    """(Load Checkpoint, Load Acceleration LoRA, prompts) of the pocket model."""
    base = graph.add("CheckpointLoaderSimple", ckpt_name=POCKET)
    fast = graph.add("LCMLoRA_Loader", model=base, lora_name=LCM)
    return base, fast, prompts(graph, base[1], text)


def sampled(graph: Graph, model: Node, texts: tuple[Node, Node], latent: Node, vae: Output, **options: Any):
    """(LCM Sampler, VAE Decode)"""
    options = {"seed": 7, "steps": 4, "cfg": 1.0} | options
    sampler = graph.add(
        "LCMLoRA_Sampler", model=model, positive=texts[0], negative=texts[1], latent=latent, **options
    )  # fmt: skip
    return sampler, graph.add("VAEDecode", samples=sampler, vae=vae)
