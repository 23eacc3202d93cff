"""The templates of workflows/: what each graph is and what its note says. tools/make_workflows.py writes the files."""

from __future__ import annotations

from typing import Any

from tools.workflow_graph import Graph, Node, Output, Template

POCKET, LCM, STYLE = "pocket.safetensors", "pocket_lcm.safetensors", "pocket_style.safetensors"
NEGATIVE = "Negative (unused at cfg 1)"
WORDS = """### The pocket model's words

animal, fruit, face, vehicle, flower, food, sport, sky; cat, panda, apple, rocket, pizza …; a background: white,
yellow, green, blue, pink, black. Other words are ignored."""


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


def text_to_image() -> Template:
    graph = Graph()
    base, fast, texts = pocket(graph, "cat")
    empty = graph.add("EmptyLatentImage", width=64, height=64, batch_size=4)
    sampler, picture = sampled(graph, fast, texts, empty, base[2])
    save = graph.add("SaveImage", images=picture, filename_prefix="lcm_lora")
    note = """## Four steps with an LCM-LoRA

**Load Acceleration LoRA** adds the acceleration vector to the model (θ'_LCM = θ + τ_LCM) and prepares its sampling.
**LCM Sampler** then needs 1–8 steps at cfg 1: each is one UNet evaluation, so the negative prompt costs and does
nothing.

On your own model: choose its checkpoint, its LCM-LoRA or another accelerator, and its picture size (512 or 1024). With
steps at 0 LCM Sampler takes them, as all that is at 0, −1 or auto, from the accelerator's recipe."""
    return Template(
        "lcm_lora_txt2img", graph, [(note, 2), (WORDS, 1)],
        [[("Model", [base, fast])], [("Prompt", texts), ("Picture", [empty])], [("Sampling", [sampler])],
         [("Result", [picture, save])]],
    )  # fmt: skip


def image_to_image() -> Template:
    graph = Graph()
    base, fast, texts = pocket(graph, "animal blue")
    picture = graph.add("LoadImage", image="pocket_sketch.png")
    scaled = graph.add(
        "ImageScale", "The model's size: 64, 512 or 1024", image=picture, upscale_method="lanczos", width=64,
        height=64, crop="center",
    )  # fmt: skip
    encoded = graph.add("VAEEncode", pixels=scaled, vae=base[2])
    batch = graph.add("RepeatLatentBatch", "Three pictures", samples=encoded, amount=3)
    sampler, decoded = sampled(graph, fast, texts, batch, base[2], denoise=0.7, seed=0)
    save = graph.add("SaveImage", images=decoded, filename_prefix="lcm_lora_img2img")
    note = """## A sketch becomes a picture, in four steps

**denoise** is the strength on the LCM grid: at 0.7 the sketch is noised to timestep 699, and four steps lead from
there to the picture. All four are made, whatever denoise is; with ComfyUI's own schedules 0.7 is another start.

Try 0.5, which stays near the sketch, and 1, which forgets it. A sketch of your own goes into Load Image; this one is
in the pack's folder workflows/inputs."""
    return Template(
        "lcm_lora_img2img", graph, [(note, 2), (WORDS, 1)],
        [[("Model", [base, fast]), ("Prompt", texts)], [("Picture", [picture, scaled, encoded, batch])],
         [("Sampling", [sampler])], [("Result", [decoded, save])]],
        before="pocket_sketch.png",
    )  # fmt: skip


def inpainting() -> Template:
    graph = Graph()
    base, fast, texts = pocket(graph, "panda green")
    picture = graph.add("LoadImage", "Picture, mask where transparent", image="pocket_damaged.png")
    encoded = graph.add("VAEEncode", pixels=picture, vae=base[2])
    masked = graph.add("SetLatentNoiseMask", samples=encoded, mask=picture[1])
    batch = graph.add("RepeatLatentBatch", "Three pictures", samples=masked, amount=3)
    sampler, decoded = sampled(graph, fast, texts, batch, base[2])
    save = graph.add("SaveImage", images=decoded, filename_prefix="lcm_lora_inpainting")
    note = """## Mend a picture, in four steps

The left of the picture is lost, and transparent: that is the mask. **LCM Sampler** makes it anew and leaves the
latent outside the mask as it was, bit for bit. Each step's noise is one field across the mask's edge, so there is no
seam.

For a picture of your own, right-click Load Image → Open in MaskEditor. denoise below 1 keeps some of what was under
the mask. Any model with an LCM-LoRA does it; it needs no inpainting model."""
    return Template(
        "lcm_lora_inpainting", graph, [(note, 2), (WORDS, 1)],
        [[("Model", [base, fast]), ("Prompt", texts)], [("Picture", [picture, encoded, masked, batch])],
         [("Sampling", [sampler])], [("Result", [decoded, save])]],
        before="pocket_damaged.png",
    )  # fmt: skip


def style_mix() -> Template:
    graph = Graph()
    base = graph.add("CheckpointLoaderSimple", ckpt_name=POCKET)
    style = graph.add("LCMLoRA_LoadVector", "Style vector τ'", lora_name=STYLE)
    lcm = graph.add("LCMLoRA_LoadVector", "Acceleration vector τ_LCM", lora_name=LCM)
    mix = graph.add("LCMLoRA_Arithmetic", "0.8·style + 1.0·LCM", a=style, b=lcm)
    model = graph.add("LCMLoRA_ApplyVector", model=base, lora=mix)
    texts = prompts(graph, base[1], "cat")
    empty = graph.add("EmptyLatentImage", width=64, height=64, batch_size=4)
    sampler, picture = sampled(graph, model, texts, empty, base[2])
    save = graph.add("SaveImage", images=picture, filename_prefix="lcm_lora_style")
    note = """## A style in four steps

LoRAs are vectors, and the paper adds them: τ'_LCM = λ₁·τ' + λ₂·τ_LCM with λ₁ = 0.8 for the style and λ₂ = 1.0 for the
acceleration. The sum is exact, whatever ranks and alphas the files have.

Try λ₁ from 0.4 to 1.2. LCM Sampler makes the model's sampling consistent by itself."""
    return Template(
        "lcm_lora_style_mix", graph, [(note, 2), (WORDS, 1)],
        [[("Model", [base]), ("LoRA vectors", [style, lcm])], [("LoRA vectors: sum", [mix]), ("Model: θ + τ", [model])],
         [("Prompt", texts), ("Picture", [empty])], [("Sampling", [sampler])], [("Result", [picture, save])]],
    )  # fmt: skip


def lambda_grid() -> Template:
    graph = Graph()
    base = graph.add("CheckpointLoaderSimple", ckpt_name=POCKET)
    style = graph.add("LCMLoRA_LoadVector", "Style vector τ'", lora_name=STYLE)
    lcm = graph.add("LCMLoRA_LoadVector", "Acceleration vector τ_LCM", lora_name=LCM)
    rows = graph.add("PrimitiveString", "λ₁: rows, the style", value="0, 0.4, 0.8")
    columns = graph.add("PrimitiveString", "λ₂: columns, the acceleration", value="0, 0.5, 1")
    sweep = graph.add("LCMLoRA_Sweep", lambda_1=rows, lambda_2=columns)
    mix = graph.add(
        "LCMLoRA_Arithmetic", "λ₁·style + λ₂·LCM, each pair", a=style, b=lcm, lambda_1=sweep, lambda_2=sweep[1]
    )  # fmt: skip
    model = graph.add("LCMLoRA_ApplyVector", model=base, lora=mix)
    texts = prompts(graph, base[1], "animal")
    empty = graph.add("EmptyLatentImage", width=64, height=64, batch_size=4)
    sampler, picture = sampled(graph, model, texts, empty, base[2], steps=2)
    grid = graph.add("LCMLoRA_SweepGrid", images=picture, lambda_1=rows, lambda_2=columns)
    save = graph.add("SaveImage", images=grid, filename_prefix="lcm_lora_lambda_grid")
    note = """## A grid of λ₁ × λ₂

τ'_LCM = λ₁·τ' + λ₂·τ_LCM, made and sampled once for each pair: down the rows the style grows with λ₁, along the
columns two steps get sharper with λ₂.

Write your values into the two texts on the left, such as 0, 0.4, 0.8 or the range 0:1:0.25. λ Sweep's outputs are
lists, so every node after them runs once for each pair; λ Sweep Grid puts all pictures into one."""
    return Template(
        "lcm_lora_lambda_grid", graph, [(note, 2), (WORDS, 1)],
        [[("Model", [base]), ("LoRA vectors", [style, lcm]), ("LoRA vectors: the values of λ", [rows, columns])],
         [("LoRA vectors: sums", [sweep, mix]), ("Model: θ + τ", [model])], [("Prompt", texts), ("Picture", [empty])],
         [("Sampling", [sampler])], [("Result", [picture, grid, save])]],
    )  # fmt: skip


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


def vector_surgery() -> Template:
    graph = Graph()
    base = graph.add("CheckpointLoaderSimple", "The model that it was merged into", ckpt_name=POCKET)
    merge = graph.add(
        "LCMLoRA_Extract", "τ of the merge = θ_merged − θ", tuned="pocket_merged.safetensors", base=POCKET, rank=96
    )  # fmt: skip
    style = graph.add("LCMLoRA_LoadVector", "Style vector τ'", lora_name=STYLE)
    rest = graph.add("LCMLoRA_Expression", "Take the style out", expression="a - 0.8*b", a=merge, b=style)
    small = graph.add("LCMLoRA_Compress", lora=rest, rank=64)
    lcm = graph.add("LCMLoRA_LoadVector", "The LCM-LoRA, to compare", lora_name=LCM)
    compared = graph.add("LCMLoRA_Compare", a=small, b=lcm, c=style, names="found, LCM, style")
    heat = graph.add("SaveImage", "Norms and cosines by block", images=compared, filename_prefix="lora_comparison")
    inspected = graph.add("LCMLoRA_Inspect", lora=small)
    saved = graph.add("LCMLoRA_SaveVector", lora=small, filename_prefix="loras/found_lcm")
    model = graph.add("LCMLoRA_ApplyVector", model=base, lora=small)
    texts = prompts(graph, base[1], "animal")
    empty = graph.add("EmptyLatentImage", width=64, height=64, batch_size=4)
    sampler, picture = sampled(graph, model, texts, empty, base[2])
    save = graph.add("SaveImage", images=picture, filename_prefix="found_lcm")
    note = """## The acceleration out of a merged checkpoint

pocket_merged is the pocket model with 0.8 of a style and an LCM-LoRA merged in. **Extract** takes the difference of
the two checkpoints, **LoRA Expression** takes the style out, **Compress** finds the nearest vector of rank 64: the
LCM-LoRA again, as the cosine of 1 with the released one shows. It is saved into output/loras, where loaders find it,
and makes the pictures: four steps, no style.

Try rank 16 in Compress. With your own files: any merge or fine-tune, the model that it was made from, and what you
want out of it."""
    return Template(
        "lora_vector_surgery", graph, [(note, 3), (WORDS, 1)],
        [[("Model", [base]), ("LoRA vectors: extract", [merge]), ("Prompt", texts)],
         [("LoRA vectors: subtract", [style, rest]), ("LoRA vectors: compress", [small]), ("Picture", [empty])],
         [("LoRA vectors: compare", [lcm, compared, heat])],
         [("LoRA vectors: inspect, save", [inspected, saved]), ("Model: θ + τ", [model])], [("Sampling", [sampler])],
         [("Result", [picture, save])]],
    )  # fmt: skip


def distil_your_own() -> Template:
    graph = Graph()
    base = graph.add("CheckpointLoaderSimple", ckpt_name=POCKET)
    texts = prompts(graph, base[1], "animal")
    many = graph.add("EmptyLatentImage", width=64, height=64, batch_size=16)
    data = graph.add(
        "KSampler", "The data: pictures of the teacher", model=base, positive=texts[0], negative=texts[1],
        latent_image=many, seed=1, steps=12, cfg=1.0, sampler_name="dpmpp_2m", scheduler="karras",
    )  # fmt: skip
    learnt = graph.add(
        "LCMLoRA_Distill", model=base, positive=texts[0], negative=texts[1], latents=data, steps=60, seed=1,
        learning_rate=1e-3, rank=32, omega_min=0.25, omega_max=1.0, links=8, preview_every=20,
        state_prefix="lcm_training/pocket",
    )  # fmt: skip
    report = graph.add("PreviewAny", "What was learnt", source=learnt[2])
    loss = graph.add("PreviewImage", "Loss", images=learnt[1])
    saved = graph.add("LCMLoRA_SaveVector", lora=learnt, filename_prefix="loras/my_lcm")
    fast = graph.add("LCMLoRA_ApplyVector", model=base, lora=learnt)
    four = graph.add("EmptyLatentImage", width=64, height=64, batch_size=4)
    samplers, pictures = zip(
        *(
            sampled(graph, model, texts, four, base[2], steps=2, original_steps=8, seed=10) for model in (base, fast)
        ), strict=True
    )  # fmt: skip
    before = graph.add("SaveImage", "2 steps of the teacher", images=pictures[0], filename_prefix="before_distillation")
    after = graph.add("SaveImage", "2 steps with the new LCM-LoRA", images=pictures[1], filename_prefix="my_lcm")
    note = """## Distil an LCM-LoRA, and use it

**Distil LCM-LoRA** makes an acceleration vector for a model from the model alone: the teacher draws 16 pictures, and
60 steps of latent consistency distillation teach a LoRA to reach its results from anywhere on the way to them. With
one seed you see two steps without and with it. It takes half a minute on a CPU, and only animals were taught.

The training's state is kept in output/lcm_training: raise steps and run again, and it goes on. The LoRA is saved into
output/loras."""
    own = """### For a model of your own

Choose the checkpoint and its size, encode your pictures (Load Image → VAE Encode) in place of KSampler, with a prompt
for each (Conditioning Combine, in the same order). Then rank 64, links 50, learning_rate 0.0001, ω 5 to 15,
original_steps 50, batch_size 4 or more, and thousands of steps: a GPU's work of hours."""
    return Template(
        "distil_your_own", graph, [(note, 3), (own, 2)],
        [[("Model: the teacher", [base]), ("Prompt", texts), ("Picture", [four, many])],
         [("Sampling: before", [samplers[0]])],
         [("LoRA vectors: distil", [learnt]), ("Picture: the data", [data])],
         [("LoRA vectors: what was learnt", [report, loss, saved]), ("Model: θ + τ", [fast])],
         [("Sampling: after", [samplers[1]])],
         [("Result", [*pictures, before, after])]],
        trains=True,
    )  # fmt: skip


def frames() -> Template:
    graph = Graph()
    base, fast, texts = pocket(graph, "cat")
    clip = graph.add("LoadImage", "Frames: an animated picture", image="pocket_clip.webp")
    encoded = graph.add("VAEEncode", pixels=clip, vae=base[2])
    stream = graph.add(
        "LCMLoRA_StreamBatch", model=fast, positive=texts[0], negative=texts[1], latent=encoded, seed=3, steps=4,
        denoise=0.4,
    )  # fmt: skip
    decoded = graph.add("VAEDecode", samples=stream, vae=base[2])
    save = graph.add("SaveImage", images=decoded, filename_prefix="lcm_frames")
    film = graph.add("SaveAnimatedWEBP", images=decoded, filename_prefix="lcm_film", fps=4.0)
    note = """## Frames, one UNet call each

**LCM Stream Batch** makes the frames of a clip: each UNet call is a batch of four successive frames at their four
timesteps, so these 8 frames in four steps take 11 calls, not 32. The frames are those that LCM Sampler makes.

denoise is the strength on the LCM grid; low values keep more of the clip, here a sketch on changing colours that is
in the pack's folder workflows/inputs. For a video use Load Video and Get Video Components in place of Load Image."""
    return Template(
        "lcm_stream_frames", graph, [(note, 2), (WORDS, 1)],
        [[("Model", [base, fast]), ("Prompt", texts)], [("Picture", [clip, encoded])], [("Sampling", [stream])],
         [("Result", [decoded, save])], [("Result: film", [film])]],
    )  # fmt: skip


TEMPLATES = [
    text_to_image(), image_to_image(), inpainting(), style_mix(), lambda_grid(), sdxl(), full_lcm(), vector_surgery(),
    distil_your_own(), frames(),
]  # fmt: skip
