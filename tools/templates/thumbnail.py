"""The picture of a template's card: its stored result, or a drawing where no result can be made here."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lcm_core.accelerators import levels, load_recipes
from tools.scene import CELL, DIM, LIGHT, PAGE, as_image, noised, paste, scene

from .graph import Drawing, Template

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "tests" / "host" / "pictures"
INPUTS = ROOT / "workflows" / "inputs"
SIDE = 400  # pixels
COLUMNS, MARGIN, TOP, CAPTION = 3, 20, 108, 24  # of a drawing
EXPERTS = {"high": "#F09A6A", "low": "#7FA7F0"}  # colours of their captions


def from_result(template: Template) -> Image.Image:
    """The template's stored result as a square, a batch as a grid, with the picture that went in if it has one."""
    stored = Image.open(PICTURES / f"{template.name}.png").convert("RGB")
    side = stored.height
    cells = [stored.crop((left, 0, left + side, side)) for left in range(0, stored.width - side + 1, side)]
    if template.before:
        cells.insert(0, Image.open(INPUTS / template.before).convert("RGB").resize((side, side)))
    if stored.width % side or len(cells) == 1:
        cells = [stored]
    columns = math.ceil(math.sqrt(len(cells)))
    cell = SIDE // columns
    above = (SIDE - math.ceil(len(cells) / columns) * cell) // 2
    square = Image.new("RGB", (SIDE, SIDE), "white")
    for i, picture in enumerate(cells):
        scale = cell / max(picture.size)
        fitted = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
        left, top = i % columns * cell, above + i // columns * cell
        square.paste(fitted, (left + (cell - fitted.width) // 2, top + (cell - fitted.height) // 2))
    return square


def drawn(drawing: Drawing) -> Image.Image:
    """A drawn picture at the noise levels of the recipes' steps and without noise; no model has a part in it."""
    recipes = [load_recipes()[0][name] for name in drawing.recipes]
    steps = levels(recipes[0], None, drawing.model)
    column = (SIDE - 2 * MARGIN) // COLUMNS
    rows = math.ceil((len(steps) + 1) / COLUMNS)
    size = min(column - CELL, (SIDE - TOP) // rows - CAPTION) // CELL * CELL
    page, picture = Image.new("RGB", (SIDE, SIDE), PAGE), scene(size)
    draw = ImageDraw.Draw(page)
    about = f"drawn: the noise at each of its {len(steps)} steps"
    lines = ((10, 34, drawing.title, LIGHT), (52, 19, drawing.subtitle, LIGHT), (82, 14, about, DIM))
    for y, height, text, colour in lines:
        draw.text((MARGIN, y), text, colour, ImageFont.load_default(height))
    for i, level in enumerate([*steps, 0]):
        left, top = MARGIN + column * (i % COLUMNS), TOP + (size + CAPTION) * (i // COLUMNS)
        tile = noised(picture, *drawing.model.process(level), i) if level else as_image(picture)
        paste(page, tile, (left, top), 10)
        expert = recipes[i * len(recipes) // len(steps)].expert if level else None
        caption, colour = f"{level:.3g} {expert or ''}".strip(), EXPERTS.get(expert, DIM)
        draw.text((left + size // 2, top + size + CAPTION // 2), caption, colour, ImageFont.load_default(15), "mm")
    return page


def thumbnail(template: Template) -> Image.Image:
    """The card's picture; FileNotFoundError says how to store the template's result."""
    if template.drawing:
        return drawn(template.drawing)
    if not (PICTURES / f"{template.name}.png").exists():
        raise FileNotFoundError(
            f"tests/host/pictures has no result of {template.name}; run tests/host/test_server.py with --store-pictures"
        )
    return from_result(template)


def sheet(pictures: list[np.ndarray]) -> np.ndarray:
    """All pictures (H, W, 3) of a run in one: those of one size in a row, the rows below each other on white."""
    rows: dict[tuple[int, ...], list[np.ndarray]] = {}
    for picture in pictures:
        rows.setdefault(picture.shape, []).append(picture)
    strips = [np.concatenate(row, axis=1) for row in rows.values()]
    whole = np.full((sum(map(len, strips)), max(strip.shape[1] for strip in strips), 3), 255, np.uint8)
    top = 0
    for strip in strips:
        whole[top : top + len(strip), : strip.shape[1]] = strip
        top += len(strip)
    return whole
