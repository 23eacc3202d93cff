"""SDXL with its LCM-LoRA, and a full LCM."""

from __future__ import annotations

from lcm_core.schedule import NoiseSchedule

from .common import LCM, POCKET, SDXL, SDXL_LCM, SIZE, Setting, empty, files, prompts, sampled
from .graph import Drawing, Graph, Template

FULL_LCM, DREAMSHAPER = "LCM_Dreamshaper_v7_4k.safetensors", "DreamShaper_7_pruned.safetensors"


def sdxl(on: Setting) -> Template:
    graph = Graph()
    base = graph.add("CheckpointLoaderSimple", ckpt_name=on(SDXL, POCKET))
    fast = graph.add("LCMLoRA_Loader", model=base, lora_name=on(SDXL_LCM, LCM))
    texts = prompts(graph, base[1], on("close-up photo of a cat on a blue sofa, soft light", "cat blue"))
    latent = empty(graph, on(1024, SIZE))
    sampler, picture = sampled(graph, fast, texts, latent, base[2])
    save = graph.add("SaveImage", images=picture, filename_prefix="lcm_lora_sdxl")
    note = """## SDXL in four steps, 1024 × 1024

The checkpoint may be any SDXL fine-tune.

Try 2 to 8 steps. For a negative prompt set cfg 1.5 and guidance_until 0.25: 4 steps then cost 5 UNet evaluations."""
    return Template(
        "lcm_lora_sdxl", graph, [(note, 2), (files(on, SDXL, SDXL_LCM), 1)],
        [[("Model", [base, fast])], [("Prompt", texts), ("Picture", [latent])], [("Sampling", [sampler])],
         [("Result", [picture, save])]],
        drawing=Drawing("SDXL", "LCM-LoRA", NoiseSchedule.scaled_linear(), ["lcm-lora"]),
    )  # fmt: skip


def full_lcm(on: Setting) -> Template:
    graph, name = Graph(), on(FULL_LCM, "test_full_lcm.safetensors")
    base = graph.add("CheckpointLoaderSimple", "CLIP and VAE", ckpt_name=on(DREAMSHAPER, POCKET))
    unet = graph.add("UNETLoader", "The full LCM", unet_name=name)
    told = graph.add("LCMLoRA_GuidanceEmbedding", model=unet, file=name, omega_per_image="0, 2.5, 5, 10")
    texts = prompts(graph, base[1], "portrait of a cat on a blue background, oil painting")
    latent = empty(graph, on(768, SIZE), 4)
    sampler, picture = sampled(graph, told, texts, latent, base[2], seeds="7, 7, 7, 7")
    save = graph.add("SaveImage", images=picture, filename_prefix="full_lcm")
    note = """## A full LCM and its guidance ω

A full LCM takes the guidance scale as an input, so it costs nothing at cfg 1. Loaders drop the weight that reads it;
**Full LCM Guidance** finds it in the file and tells the model ω = guidance_scale − 1. The four pictures have one seed
and ω 0, 2.5, 5 and 10. One ω for all: empty omega_per_image and set omega.

The checkpoint gives CLIP and VAE alone, and may be another SD 1.5. A checkpoint with all parts: take its MODEL from
Load Checkpoint, leave the diffusion model's loader out, and choose the checkpoint as the file."""
    return Template(
        "full_lcm_guidance", graph, [(note, 2), (files(on, FULL_LCM, DREAMSHAPER), 1)],
        [[("Model", [base, unet, told])], [("Prompt", texts), ("Picture", [latent])], [("Sampling", [sampler])],
         [("Result", [picture, save])]],
    )  # fmt: skip
