"""docs/icon.png, docs/banner.png: noise becomes a picture, at the timesteps where a 4-step LCM evaluates."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image, ImageDraw, ImageFont

from lcm_core.schedule import NoiseSchedule, lcm_timesteps
from tools.scene import DIM, LIGHT, PAGE, as_image, encoded, noised, paste, scene
from tools.workshop import ROOT, Product, Workshop

SCHEDULE = NoiseSchedule.scaled_linear()


def products(workshop: Workshop) -> Iterator[Product]:
    yield Product(ROOT / "docs" / "icon.png", lambda: encoded(icon(), "PNG"))
    yield Product(ROOT / "docs" / "banner.png", lambda: encoded(banner(), "PNG"))


def icon() -> Image.Image:
    """400 × 400: four tiles, read as lines are."""
    page, picture = Image.new("RGB", (400, 400), PAGE), scene(176)
    tiles = [noised(picture, *SCHEDULE.process(t), seed) for seed, t in enumerate((999, 499, 259))]
    tiles.append(as_image(picture))
    for i, tile in enumerate(tiles):
        paste(page, tile, (16 + 192 * (i % 2), 16 + 192 * (i // 2)), 20)
    return page


def banner() -> Image.Image:
    """1260 × 540, 21:9: where the four evaluations start, and what the last gives."""
    page, picture = Image.new("RGB", (1260, 540), PAGE), scene(208)
    draw = ImageDraw.Draw(page)
    draw.text((60, 48), "LCM-LoRA", LIGHT, ImageFont.load_default(76))
    draw.text((62, 146), "pictures in 1 to 8 steps", DIM, ImageFont.load_default(32))
    timesteps = lcm_timesteps(4)
    for i, t in enumerate(timesteps):
        paste(page, noised(picture, *SCHEDULE.process(t), i), (60 + 233 * i, 240), 18)
    paste(page, as_image(picture), (60 + 233 * 4, 240), 18)
    for i, text in enumerate([*map(str, timesteps), "0"]):
        draw.text((60 + 233 * i + 104, 478), text, DIM, ImageFont.load_default(26), "mm")
    return page
