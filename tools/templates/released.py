"""Released models, under the names that their files have."""

from __future__ import annotations

from .common import LCM, POCKET, prompts, sampled
from .graph import Graph, Template


def sdxl() -> Template:
    graph = Graph()
    base = graph.add("CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors")
    fast = graph.add("LCMLoRA_Loader", model=base, lora_name="lcm-lora-sdxl.safetensors")
    texts = prompts(graph, base[1], "close-up photo of a cat on a blue sofa, soft light")
    empty = graph.add("EmptyLatentImage", width=1024, height=1024)
    sampler, picture = sampled(graph, fast, texts, empty, base[2])
    save = graph.add("SaveImage", images=picture, filename_prefix="lcm_lora_sdxl")
    note = """## SDXL in four steps, 1024 × 1024

It needs two files: [sd_xl_base_1.0.safetensors](https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0) or
any SDXL fine-tune in models/checkpoints, and the [LCM-LoRA of
SDXL](https://huggingface.co/latent-consistency/lcm-lora-sdxl), renamed lcm-lora-sdxl.safetensors, in models/loras.

Try 2 to 8 steps. For a negative prompt set cfg 1.5 and guidance_until 0.25: 4 steps then cost 5 UNet evaluations."""
    pocket = """### Without an SDXL

The same graph runs on the pocket model: choose pocket.safetensors and pocket_lcm.safetensors, and 64 × 64 pixels."""
    return Template(
        "lcm_lora_sdxl", graph, [(note, 2), (pocket, 1)],
        [[("Model", [base, fast])], [("Prompt", texts), ("Picture", [empty])], [("Sampling", [sampler])],
         [("Result", [picture, save])]],
        stand_ins={"sd_xl_base_1.0.safetensors": POCKET, "lcm-lora-sdxl.safetensors": LCM, 1024: 64},
    )  # fmt: skip


def full_lcm() -> Template:
    graph, name = Graph(), "LCM_Dreamshaper_v7_4k.safetensors"
    base = graph.add("CheckpointLoaderSimple", "CLIP and VAE", ckpt_name="DreamShaper_7_pruned.safetensors")
    unet = graph.add("UNETLoader", "The full LCM", unet_name=name)
    told = graph.add("LCMLoRA_GuidanceEmbedding", model=unet, file=name, omega_per_image="0, 2.5, 5, 10")
    texts = prompts(graph, base[1], "portrait of a cat on a blue background, oil painting")
    empty = graph.add("EmptyLatentImage", width=768, height=768, batch_size=4)
    sampler, picture = sampled(graph, told, texts, empty, base[2], seeds="7, 7, 7, 7")
    save = graph.add("SaveImage", images=picture, filename_prefix="full_lcm")
    note = """## A full LCM and its guidance ω

A full LCM takes the guidance scale as an input, so it costs nothing at cfg 1. Loaders drop the weight that reads it;
**Full LCM Guidance** finds it in the file and tells the model ω = guidance_scale − 1. The four pictures have one seed
and ω 0, 2.5, 5 and 10.

Needs [LCM_Dreamshaper_v7_4k.safetensors](https://huggingface.co/SimianLuo/LCM_Dreamshaper_v7) in
models/diffusion_models, and for CLIP and VAE [DreamShaper 7](https://huggingface.co/Lykon/DreamShaper) or another SD
1.5 in models/checkpoints."""
    single = """### A checkpoint with all parts

Then take its MODEL from Load Checkpoint, leave the diffusion model's loader out, and choose the checkpoint as the
file.

One ω for all: empty omega_per_image and set omega."""
    return Template(
        "full_lcm_guidance", graph, [(note, 2), (single, 1)],
        [[("Model", [base, unet, told])], [("Prompt", texts), ("Picture", [empty])], [("Sampling", [sampler])],
         [("Result", [picture, save])]],
        stand_ins={name: "test_full_lcm.safetensors", "DreamShaper_7_pruned.safetensors": POCKET, 768: 64},
    )  # fmt: skip
