"""Pictures and frames of Stable Diffusion 1.5 with its LCM-LoRA."""

from __future__ import annotations

from .common import EXAMPLE, SD15, SD15_LCM, SIZE, Setting, empty, files, sampled, sd15
from .graph import Graph, Template


def text_to_image(on: Setting) -> Template:
    graph = Graph()
    base, fast, texts = sd15(graph, on, on("photo of a cat on a garden wall, evening light", "cat"))
    latent = empty(graph, on(512, SIZE), 4)
    sampler, picture = sampled(graph, fast, texts, latent, base[2])
    save = graph.add("SaveImage", images=picture, filename_prefix="lcm_lora")
    sizes = on(
        "Stable Diffusion 1.5 is made for 512 × 512, SDXL for 1024 × 1024; pictures of a quarter of that fall apart.",
        "The pocket model is made for 128 × 128.",
    )
    note = f"""## Four steps with an LCM-LoRA

**Load Acceleration LoRA** adds the acceleration vector to the model (θ'_LCM = θ + τ_LCM) and prepares its sampling.
**LCM Sampler** then needs 1–8 steps at cfg 1: each is one UNet evaluation, so the negative prompt costs and does
nothing. {sizes}

On your own model: choose its checkpoint, its LCM-LoRA or another accelerator, and its picture size. With steps at 0
LCM Sampler takes them, as all that is at 0, −1 or auto, from the accelerator's recipe."""
    return Template(
        "lcm_lora_txt2img", graph, [(note, 2), (files(on, SD15, SD15_LCM), 1)],
        [[("Model", [base, fast])], [("Prompt", texts), ("Picture", [latent])], [("Sampling", [sampler])],
         [("Result", [picture, save])]],
    )  # fmt: skip


def many_steps_and_few(on: Setting) -> Template:
    graph = Graph()
    words = on("portrait of a red fox in a snowy forest, detailed fur", "vehicle")
    base, fast, texts = sd15(graph, on, words, "Negative, of the 25 steps alone")
    latent = empty(graph, on(512, SIZE))
    many = graph.add(
        "KSampler", "25 guided steps", model=base, positive=texts[0], negative=texts[1],
        latent_image=latent, seed=7, steps=25, cfg=on(7.5, 3.0), sampler_name="dpmpp_2m", scheduler="karras",
    )  # fmt: skip
    slow = graph.add("VAEDecode", samples=many, vae=base[2])
    before = graph.add("SaveImage", "25 steps without the LoRA", images=slow, filename_prefix="steps_25")
    few, picture = sampled(graph, fast, texts, latent, base[2])
    after = graph.add("SaveImage", "4 steps with the LCM-LoRA", images=picture, filename_prefix="steps_4")
    note = """## 25 guided steps beside 4

One prompt and one seed, twice: by the model alone, DPM-Solver++ with guidance, which evaluates the UNet for the
prompt and for its negative, 50 times in all; and with the LCM-LoRA, 4 times. Both start from the same noise; how
alike the pictures become is the model's affair.

The second run, which has the model loaded, shows what each costs. Try 2 and 8 steps in LCM Sampler, and in KSampler 4:
so few steps without the LoRA."""
    return Template(
        "lcm_lora_25_steps_and_4", graph, [(note, 2), (files(on, SD15, SD15_LCM), 1)],
        [[("Model", [base, fast]), ("Prompt", texts)], [("Picture", [latent]), ("Sampling: 25 steps", [many])],
         [("Sampling: 4 steps", [few])], [("Result: 25 steps", [slow, before])],
         [("Result: 4 steps", [picture, after])]],
    )  # fmt: skip


def image_to_image(on: Setting) -> Template:
    graph = Graph()
    base, fast, texts = sd15(graph, on, on("watercolour painting, soft colours", "animal blue"))
    picture = graph.add("LoadImage", image=on(EXAMPLE, "pocket_sketch.png"))
    scaled = graph.add(
        "ImageScale", on("The model's size: 512 or 1024", "The model's size"), image=picture, upscale_method="lanczos",
        width=on(512, SIZE), height=on(512, SIZE), crop="center",
    )  # fmt: skip
    encoded = graph.add("VAEEncode", pixels=scaled, vae=base[2])
    batch = graph.add("RepeatLatentBatch", "Three pictures", samples=encoded, amount=3)
    sampler, decoded = sampled(graph, fast, texts, batch, base[2], denoise=0.7, seed=0)
    save = graph.add("SaveImage", images=decoded, filename_prefix="lcm_lora_img2img")
    source = on(
        "A picture of your own goes into Load Image; this one comes with ComfyUI.",
        "This sketch is in the pack's folder workflows/inputs.",
    )
    note = f"""## A picture becomes another, in four steps

**denoise** is the strength on the LCM grid: at 0.7 the picture is noised to timestep 699, and four steps lead from
there to the new one. All four are made, whatever denoise is; with ComfyUI's own schedules 0.7 is another start.

Try 0.5, which stays near the picture, and 1, which forgets it. {source}"""
    return Template(
        "lcm_lora_img2img", graph, [(note, 2), (files(on, SD15, SD15_LCM), 1)],
        [[("Model", [base, fast]), ("Prompt", texts)], [("Picture", [picture, scaled, encoded, batch])],
         [("Sampling", [sampler])], [("Result", [decoded, save])]],
        before="pocket_sketch.png",
    )  # fmt: skip


def inpainting(on: Setting) -> Template:
    graph = Graph()
    base, fast, texts = sd15(graph, on, on("a wooden bench in a park, photo", "panda green"))
    title = on("Picture: paint a mask into it", "Picture, mask where transparent")
    picture = graph.add("LoadImage", title, image=on(EXAMPLE, "pocket_damaged.png"))
    encoded = graph.add("VAEEncode", pixels=picture, vae=base[2])
    masked = graph.add("SetLatentNoiseMask", samples=encoded, mask=picture[1])
    batch = graph.add("RepeatLatentBatch", "Three pictures", samples=masked, amount=3)
    sampler, decoded = sampled(graph, fast, texts, batch, base[2])
    save = graph.add("SaveImage", images=decoded, filename_prefix="lcm_lora_inpainting")
    start = on(
        "Choose a picture of 512 to 768 pixels, right-click **Load Image** → Open in MaskEditor and paint over what is "
        "to be made anew: without a mask nothing is.",
        "The left of the picture is lost, and transparent: that is the mask.",
    )
    note = f"""## Mend a picture, in four steps

{start} **LCM Sampler** leaves the latent outside the mask as it was, bit for bit. Each step's noise is one field across
the mask's edge, so there is no seam.

denoise below 1 keeps some of what was under the mask. Any model with an LCM-LoRA does it; it needs no inpainting
model."""
    return Template(
        "lcm_lora_inpainting", graph, [(note, 2), (files(on, SD15, SD15_LCM), 1)],
        [[("Model", [base, fast]), ("Prompt", texts)], [("Picture", [picture, encoded, masked, batch])],
         [("Sampling", [sampler])], [("Result", [decoded, save])]],
        before="pocket_damaged.png",
    )  # fmt: skip


def frames(on: Setting) -> Template:
    graph = Graph()
    base, fast, texts = sd15(graph, on, on("watercolour painting, soft colours", "cat"))
    clip = graph.add("LoadImage", "Frames: an animated picture", image=on(EXAMPLE, "pocket_clip.webp"))
    encoded = graph.add("VAEEncode", pixels=clip, vae=base[2])
    stream = graph.add(
        "LCMLoRA_StreamBatch", model=fast, positive=texts[0], negative=texts[1], latent=encoded, seed=3, steps=4,
        denoise=0.4,
    )  # fmt: skip
    decoded = graph.add("VAEDecode", samples=stream, vae=base[2])
    save = graph.add("SaveImage", images=decoded, filename_prefix="lcm_frames")
    film = graph.add("SaveAnimatedWEBP", images=decoded, filename_prefix="lcm_film", fps=4.0)
    source = on(
        "Choose a GIF, WebP or APNG of about 512 pixels; the picture that is chosen now is one frame alone.",
        "Here it is a sketch on changing colours, which is in the pack's folder workflows/inputs.",
    )
    note = f"""## Frames, one UNet call each

**LCM Stream Batch** makes the frames of a clip: each UNet call is a batch of four successive frames at their four
timesteps, so 8 frames in four steps take 11 calls, not 32. The frames are those that LCM Sampler makes.

denoise is the strength on the LCM grid; low values keep more of the clip. {source} For a video use Load Video and Get
Video Components in place of Load Image."""
    return Template(
        "lcm_stream_frames", graph, [(note, 2), (files(on, SD15, SD15_LCM), 1)],
        [[("Model", [base, fast]), ("Prompt", texts)], [("Picture", [clip, encoded])], [("Sampling", [stream])],
         [("Result", [decoded, save])], [("Result: film", [film])]],
    )  # fmt: skip
