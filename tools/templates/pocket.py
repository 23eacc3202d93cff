"""Pictures and frames of the pocket model with its LCM-LoRA."""

from __future__ import annotations

from .common import SIZE, WORDS, pocket, sampled
from .graph import Graph, Template


def text_to_image() -> Template:
    graph = Graph()
    base, fast, texts = pocket(graph, "cat")
    empty = graph.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=4)
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
        "ImageScale", "The model's size: 128, 512 or 1024", image=picture, upscale_method="lanczos", width=SIZE,
        height=SIZE, crop="center",
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
