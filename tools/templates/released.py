"""Released models, under the names that their files have."""

from __future__ import annotations

from lcm_core.schedule import NoiseSchedule

from .common import LCM, POCKET, SIZE, prompts, sampled
from .graph import Drawing, Graph, Template
from .models import downloads


def sdxl() -> Template:
    graph = Graph()
    base = graph.add("CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors")
    fast = graph.add("LCMLoRA_Loader", model=base, lora_name="lcm-lora-sdxl.safetensors")
    texts = prompts(graph, base[1], "close-up photo of a cat on a blue sofa, soft light")
    empty = graph.add("EmptyLatentImage", width=1024, height=1024)
    sampler, picture = sampled(graph, fast, texts, empty, base[2])
    save = graph.add("SaveImage", images=picture, filename_prefix="lcm_lora_sdxl")
    note = f"""## SDXL in four steps, 1024 × 1024

{downloads("sd_xl_base_1.0.safetensors", "lcm-lora-sdxl.safetensors")}

The checkpoint may be any SDXL fine-tune. Rename the LCM-LoRA's file, which is called pytorch_lora_weights.safetensors
there.

Try 2 to 8 steps. For a negative prompt set cfg 1.5 and guidance_until 0.25: 4 steps then cost 5 UNet evaluations."""
    pocket = """### Without an SDXL

The same graph runs on the pocket model: choose pocket.safetensors and pocket_lcm.safetensors, and 128 × 128 pixels."""
    return Template(
        "lcm_lora_sdxl", graph, [(note, 2), (pocket, 1)],
        [[("Model", [base, fast])], [("Prompt", texts), ("Picture", [empty])], [("Sampling", [sampler])],
         [("Result", [picture, save])]],
        stand_ins={"sd_xl_base_1.0.safetensors": POCKET, "lcm-lora-sdxl.safetensors": LCM, 1024: SIZE},
        drawing=Drawing("SDXL", "LCM-LoRA", NoiseSchedule.scaled_linear(), ["lcm-lora"]),
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
    note = f"""## A full LCM and its guidance ω

A full LCM takes the guidance scale as an input, so it costs nothing at cfg 1. Loaders drop the weight that reads it;
**Full LCM Guidance** finds it in the file and tells the model ω = guidance_scale − 1. The four pictures have one seed
and ω 0, 2.5, 5 and 10.

{downloads(name, "DreamShaper_7_pruned.safetensors")}

The checkpoint gives CLIP and VAE alone, and may be another SD 1.5."""
    single = """### A checkpoint with all parts

Then take its MODEL from Load Checkpoint, leave the diffusion model's loader out, and choose the checkpoint as the
file.

One ω for all: empty omega_per_image and set omega."""
    return Template(
        "full_lcm_guidance", graph, [(note, 2), (single, 1)],
        [[("Model", [base, unet, told])], [("Prompt", texts), ("Picture", [empty])], [("Sampling", [sampler])],
         [("Result", [picture, save])]],
        stand_ins={name: "test_full_lcm.safetensors", "DreamShaper_7_pruned.safetensors": POCKET, 768: SIZE},
    )  # fmt: skip
