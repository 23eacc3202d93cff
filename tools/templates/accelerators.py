"""Released accelerators on their models: each by the recipe that its file is recognised by, with all else on auto."""

from __future__ import annotations

import math

from lcm_core.schedule import Flow, NoiseSchedule

from .common import POCKET, SDXL, SIZE, Setting, empty, files, prompts
from .graph import Drawing, Graph, Node, Output, Template
from .models import downloads

LIGHTNING = "sdxl_lightning_4step_lora.safetensors"
HYPER = "Hyper-SD15-4steps-lora.safetensors"  # the name under which the pocket model's LoRA is one of Hyper-SD
AUTO = """### What auto takes from the recipe

LCM Sampler's steps 0, cfg −1, gamma −1 and grid *auto* are the recipe's: **Load Acceleration LoRA** says which it found
and why, and **LCM Sampler** what it made of it. A value that you set stands; one that contradicts the recipe is warned
of. Its negative prompt does nothing at cfg 1."""


def made(graph: Graph, model: Node, texts: tuple[Node, Node], latent: Node, vae: Output) -> tuple[Node, Node]:
    """(LCM Sampler with everything on auto, VAE Decode)"""
    sampler = graph.add("LCMLoRA_Sampler", model=model, positive=texts[0], negative=texts[1], latent=latent, seed=7)
    return sampler, graph.add("VAEDecode", samples=sampler, vae=vae)


def described(graph: Graph, clip: Output, text: str) -> tuple[Node, Node]:
    """(the prompt, zeros in place of the negative one): a large text encoder runs once."""
    positive = graph.add("CLIPTextEncode", "Prompt", clip=clip, text=text)
    return positive, graph.add("ConditioningZeroOut", "Negative: none at cfg 1", conditioning=positive)


def sdxl_accelerators(on: Setting) -> Template:
    graph = Graph()
    base = graph.add("CheckpointLoaderSimple", ckpt_name=on(SDXL, POCKET))
    fast = graph.add("LCMLoRA_Loader", "Lightning, Hyper-SD or DMD2", model=base, lora_name=on(LIGHTNING, HYPER))
    texts = prompts(graph, base[1], "close-up photo of a red fox in snow, soft morning light")
    latent = empty(graph, on(1024, SIZE))
    sampler, picture = made(graph, fast, texts, latent, base[2])
    save = graph.add("SaveImage", images=picture, filename_prefix="sdxl_accelerated")
    note = f"""## SDXL by Lightning, Hyper-SD or DMD2

Each of these LoRAs wants other noise levels: Lightning and Hyper-SD the trailing grid without fresh noise (γ 0), DMD2
its own four timesteps with all of it (γ 1). Choose the file in **Load Acceleration LoRA**; nothing else changes.

{files(on, SDXL, LIGHTNING, "Hyper-SDXL-8steps-lora.safetensors", "dmd2_sdxl_4step_lora_fp16.safetensors")}

One of the LoRAs is enough, and the checkpoint may be any SDXL fine-tune. The number of steps is the one in the file's
name: 2, 4 or 8."""
    return Template(
        "sdxl_lightning_hyper_dmd2", graph, [(note, 2), (AUTO, 1)],
        [[("Model", [base, fast])], [("Prompt", texts), ("Picture", [latent])], [("Sampling", [sampler])],
         [("Result", [picture, save])]],
        drawing=Drawing("SDXL", "Lightning, Hyper-SD or DMD2", NoiseSchedule.scaled_linear(), ["sdxl-lightning"]),
    )  # fmt: skip


def flux_turbo() -> Template:
    graph = Graph()
    checkpoint, turbo = "flux1-dev-fp8.safetensors", "FLUX.1-Turbo-Alpha.safetensors"
    base = graph.add("CheckpointLoaderSimple", ckpt_name=checkpoint)
    fast = graph.add("LCMLoRA_Loader", model=base, lora_name=turbo)
    texts = described(graph, base[1], "a lighthouse on a cliff at dusk, waves below, film photograph, fine grain")
    guided = graph.add("FluxGuidance", "Distilled guidance", conditioning=texts[0], guidance=3.5)
    empty = graph.add("EmptySD3LatentImage", width=1024, height=1024, batch_size=1)
    sampler, picture = made(graph, fast, (guided, texts[1]), empty, base[2])
    save = graph.add("SaveImage", images=picture, filename_prefix="flux_turbo")
    note = f"""## Flux.1 dev in eight steps

{downloads(checkpoint, turbo)}

By its name the LoRA's file is recognised. It takes 8 steps of the trailing grid under the model's own shift, γ 0, cfg 1
and distilled guidance 3.5; another guidance is warned of. Both files are under FLUX.1 [dev]'s non-commercial licence.

ByteDance's Hyper-FLUX.1-dev-8steps-lora.safetensors goes the same way, at strength 0.125."""
    return Template(
        "flux_turbo", graph, [(note, 2), (AUTO, 1)],
        [[("Model", [base, fast])], [("Prompt", [*texts, guided]), ("Picture", [empty])], [("Sampling", [sampler])],
         [("Result", [picture, save])]],
        network="Flux.1",
        drawing=Drawing("Flux.1 dev", "Turbo Alpha", Flow(math.exp(1.15)), ["flux-turbo-alpha"]),
    )  # fmt: skip


def qwen_image_lightning() -> Template:
    graph = Graph()
    unet, clip = "qwen_image_fp8_e4m3fn.safetensors", "qwen_2.5_vl_7b_fp8_scaled.safetensors"
    vae, lightning = "qwen_image_vae.safetensors", "Qwen-Image-Lightning-4steps-V1.0.safetensors"
    base = graph.add("UNETLoader", unet_name=unet)
    encoder = graph.add("CLIPLoader", clip_name=clip, type="qwen_image")
    decoder = graph.add("VAELoader", vae_name=vae)
    fast = graph.add("LCMLoRA_Loader", model=base, lora_name=lightning)
    texts = described(graph, encoder[0], 'a bakery window with the words "fresh at five" in gold, a rainy night')
    empty = graph.add("EmptySD3LatentImage", width=1328, height=1328, batch_size=1)
    sampler, picture = made(graph, fast, texts, empty, decoder[0])
    save = graph.add("SaveImage", images=picture, filename_prefix="qwen_image_lightning")
    note = f"""## Qwen-Image in four steps

{downloads(unet, lightning, clip, vae)}

**Load Acceleration LoRA** sets the model's shift to 3, which this LoRA was made for, and **LCM Sampler** makes the 4
steps of its name on the trailing grid, γ 0, cfg 1. No ModelSamplingAuraFlow is needed; a shift that a node before sets
is kept, and warned of if it is none of the recipe's.

Qwen-Image-Lightning-8steps-V1.0.safetensors takes 8 steps: choose that file, nothing else changes."""
    return Template(
        "qwen_image_lightning", graph, [(note, 2), (AUTO, 1)],
        [[("Model", [base, fast]), ("Model: text and picture", [encoder, decoder])],
         [("Prompt", texts), ("Picture", [empty])], [("Sampling", [sampler])], [("Result", [picture, save])]],
        network="Qwen-Image",
        drawing=Drawing("Qwen-Image", "Lightning", Flow(3), ["qwen-lightning"]),
    )  # fmt: skip


def wan22_lightning() -> Template:
    graph = Graph()
    clip, vae = "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan_2.1_vae.safetensors"
    unets = [f"wan2.2_t2v_{half}_noise_14B_fp8_scaled.safetensors" for half in ("high", "low")]
    loras = [f"wan2.2_t2v_lightx2v_4steps_lora_v1.1_{half}_noise.safetensors" for half in ("high", "low")]
    bases = [
        graph.add("UNETLoader", f"The {half}-noise expert", unet_name=unet)
        for half, unet in zip(("high", "low"), unets, strict=True)
    ]
    fasts = [
        graph.add("LCMLoRA_Loader", model=base, lora_name=lora) for base, lora in zip(bases, loras, strict=True)
    ]  # fmt: skip
    encoder = graph.add("CLIPLoader", clip_name=clip, type="wan")
    decoder = graph.add("VAELoader", vae_name=vae)
    texts = described(graph, encoder[0], "a paper boat drifts down a brook in a spring forest, the camera follows it")
    empty = graph.add("EmptyHunyuanLatentVideo", width=640, height=640, length=81, batch_size=1)
    common = {"positive": texts[0], "negative": texts[1], "seed": 7}
    first = graph.add(
        "LCMLoRA_Sampler", "Steps 1 and 2: high noise", model=fasts[0], latent=empty, end_at_step=2,
        return_with_leftover_noise=True, **common,
    )  # fmt: skip
    second = graph.add(
        "LCMLoRA_Sampler", "Steps 3 and 4: low noise", model=fasts[1], latent=first, start_at_step=2, add_noise=False,
        **common,
    )  # fmt: skip
    frames = graph.add("VAEDecode", samples=second, vae=decoder[0])
    film = graph.add("CreateVideo", images=frames, fps=16)
    save = graph.add("SaveVideo", video=film, filename_prefix="video/wan22_lightning")
    note = """## Wan 2.2 video in four steps, two experts

Wan 2.2 has one network for much noise and one for little, and so has its accelerator. The first **LCM Sampler** makes
steps 1 and 2 of four and hands the noise on, the second makes steps 3 and 4 and adds none. Both take the trailing grid
under shift 5 (1, 0.9375, 0.8333, 0.625), γ 0 and cfg 1 from their recipes: all that is at 0, −1 or auto. A LoRA on the
wrong expert is warned of.

For a picture set length to 1. Less memory: 480 × 480, or fewer frames (4n + 1)."""
    files = f"""### Files

{downloads(unets[0], loras[0], unets[1], loras[1], clip, vae)}"""
    return Template(
        "wan22_lightning_video", graph, [(note, 2), (files, 2)],
        [[("Model: high noise", [bases[0], fasts[0]]), ("Model: low noise", [bases[1], fasts[1]])],
         [("Model: text and picture", [encoder, decoder]), ("Prompt", texts), ("Picture", [empty])],
         [("Sampling: high noise", [first])], [("Sampling: low noise", [second])],
         [("Result", [frames, film, save])]],
        network="Wan 2.1 T2V",
        drawing=Drawing(
            "Wan 2.2 video", "Lightning, two experts", Flow(5), ["wan22-lightning-high", "wan22-lightning-low"]
        ),
    )  # fmt: skip
