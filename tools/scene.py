"""A drawn picture, and the same in the noise of a level: what the icon, the banner and drawn thumbnails show."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

PAGE, LIGHT, DIM = "#14172B", "#F4F1E8", "#9AA3C7"
SKY, SUN, FAR, NEAR, LAKE = ("#35468F", "#6B5AA0", "#B5708F", "#F09A6A"), "#FFE3A3", "#4A3F83", "#262450", "#F5BE85"
SHARP = 4  # drawn so many times larger, then averaged down
CELL = 8  # pixels of the picture to one of the latent, as in Stable Diffusion


def scene(size: int) -> np.ndarray:
    """The picture, (size, size, 3) in [−1, 1]: the sun over two ranges and a lake."""
    side = size * SHARP
    image = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(image)

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x * side, y * side) for x, y in points]

    for i, colour in enumerate(SKY):
        draw.rectangle(at((0, 0.17 * i), (1, 1)), colour)
    draw.ellipse(at((0.53, 0.16), (0.83, 0.46)), SUN)
    draw.polygon(at((0, 0.66), (0.26, 0.36), (0.42, 0.54), (0.62, 0.40), (1, 0.70), (1, 0.8), (0, 0.8)), FAR)
    draw.polygon(at((0, 0.60), (0.14, 0.52), (0.44, 0.77), (0.74, 0.62), (1, 0.74), (1, 0.8), (0, 0.8)), NEAR)
    draw.rectangle(at((0, 0.77), (1, 1)), LAKE)
    for x, y, length in ((0.60, 0.82, 0.20), (0.56, 0.88, 0.28), (0.63, 0.94, 0.14)):
        draw.line(at((x, y), (x + length, y)), SUN, round(0.02 * side))
    return np.asarray(image.resize((size, size), Image.Resampling.BOX)) / 127.5 - 1


def noised(picture: np.ndarray, alpha: float, sigma: float, seed: int) -> Image.Image:
    """α·picture + σ·z in cells, as an image; z is more grey than coloured, and weak enough for 8 bits."""
    cells = len(picture) // CELL
    coarse = picture.reshape(cells, CELL, cells, CELL, 3).mean((1, 3))
    random = np.random.default_rng(seed)
    z = 0.45 * random.standard_normal((cells, cells, 1)) + 0.2 * random.standard_normal((cells, cells, 3))
    return as_image((alpha * coarse + sigma * z).repeat(CELL, 0).repeat(CELL, 1))


def as_image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(((values.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8))


def paste(page: Image.Image, tile: Image.Image, place: tuple[int, int], radius: int) -> None:
    mask = Image.new("L", (tile.width * SHARP, tile.height * SHARP))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), radius * SHARP, 255)
    page.paste(tile, place, mask.resize(tile.size, Image.Resampling.BOX))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as a file of this kind, made as small as it goes."""
    file = io.BytesIO()
    image.save(file, kind, optimize=True, **options)
    return file.getvalue()
