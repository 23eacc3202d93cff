"""workflows/inputs: what goes into templates on the pocket model: drawn pictures, some by itself, and their texts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw

from tools.comfy_client import Client
from tools.scene import encoded
from tools.templates.common import POCKET, SIZE
from tools.workshop import ROOT, Product, Workshop

FOLDER = ROOT / "workflows" / "inputs"
GRID = 64  # units across a sketch
SCALE = 8 * SIZE // GRID  # pixels a unit, before it is made small
FRAMES = 8
TAUGHT = ["cat blue", "panda green", "fox white", "frog pink", "pig yellow", "tiger blue", "koala green", "rabbit pink"]
COLOURS = [(122, 178, 238), (248, 166, 196), (134, 204, 138), (250, 216, 108)]
ORANGE, DARK = (250, 180, 60), (40, 30, 30)


def products(workshop: Workshop) -> Iterator[Product]:
    yield Product(FOLDER / "pocket_sketch.png", lambda: encoded(sketch(COLOURS[0]), "PNG"))
    yield Product(FOLDER / "pocket_clip.webp", clip)
    yield Product(FOLDER / "pocket_damaged.png", lambda: encoded(damaged(made(workshop.client, "panda green")), "PNG"))
    for text in TAUGHT:
        name = FOLDER / "pocket_pictures" / text.replace(" ", "_")
        yield Product.text(name.with_suffix(".txt"), lambda text=text: text)
        yield Product(name.with_suffix(".jpg"), lambda text=text: picture(made(workshop.client, text)))


def clip() -> bytes:
    """The sketch on changing colours, as an animated picture."""
    first, *others = [sketch(COLOURS[i * len(COLOURS) // FRAMES], (-1) ** i) for i in range(FRAMES)]
    return encoded(first, "WEBP", save_all=True, append_images=others, duration=250, loop=0, lossless=True)


def sketch(background: tuple[int, int, int], look: int = 0) -> Image.Image:
    """A cat's head as a child draws it; its face is `look` pixels to the right."""
    large = Image.new("RGB", (GRID * SCALE, GRID * SCALE), background)
    draw = ImageDraw.Draw(large)

    def scaled(*values: int) -> list[int]:
        return [SCALE * value for value in values]

    draw.polygon(scaled(10, 30, 12, 6, 30, 16), ORANGE)
    draw.polygon(scaled(54, 30, 52, 6, 34, 16), ORANGE)
    draw.ellipse(scaled(8, 12, 56, 56), ORANGE)
    for left, top, right, bottom in ((19, 28, 25, 36), (39, 28, 45, 36), (28, 40, 36, 46)):
        draw.ellipse(scaled(left + look, top, right + look, bottom), DARK)
    return large.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def damaged(picture: np.ndarray) -> Image.Image:
    """The left 3/8 of a picture lost, and a little more than that transparent."""
    alpha = np.full((*picture.shape[:2], 1), 255, np.uint8)
    alpha[:, : SIZE // 2] = 0
    lost = picture.copy()
    lost[:, : SIZE * 3 // 8] = 255
    return Image.fromarray(np.concatenate([lost, alpha], axis=2))


def picture(values: np.ndarray) -> bytes:
    return encoded(Image.fromarray(values), "JPEG", quality=92)


def made(client: Client, text: str) -> np.ndarray:
    """What the pocket model draws in 25 steps."""
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": POCKET}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": SIZE, "height": SIZE, "batch_size": 1}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": 5,
                "steps": 25, "cfg": 3.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0,
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
    }  # fmt: skip
    return client.images(client.queue(graph))[0]
