"""Pictures of numbers, as IMAGEs: (1, H, W, 3) in [0, 1], drawn with the Pillow that every host has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")  # of Okabe and Ito: colour-blind people tell them apart
COLD_TO_WARM = ("#2166AC", "#92C5DE", "#F7F7F7", "#F4A582", "#B2182B")  # of ColorBrewer: cosines from -1 to 1
INK, FAINT = "#222222", "#DDDDDD"
ALL = "all"  # the whole vector's entry among the blocks'
LOGARITHMIC = 30  # where one vector's norm is more than so many times another's, the axis is logarithmic
FINE = 2  # charts are drawn so many times larger and reduced, which smooths their lines
TEXT, LINE = 17 * FINE, 26 * FINE  # a font's size and a line of text, in the fine picture's pixels

Norms = Mapping[str, Mapping[str, float]]  # vector -> block, or `all` -> norm
Cosines = Mapping[tuple[str, str], Mapping[str, float]]  # two vectors -> block, or `all` -> cosine


@dataclass(frozen=True)
class Scale:
    """An axis: the value `low` lies at the pixel `first` and `high` at `last`."""

    low: float
    high: float
    first: float
    last: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return self.first + (at - low) / (high - low) * (self.last - self.first)

    def ticks(self) -> list[float]:
        """Two to eight round values from `low` to `high`; powers of ten where those are enough."""
        if not self.logarithmic or self.high < 5 * self.low:
            width = (self.high - self.low) / 5
            power = 10.0 ** math.floor(math.log10(width))
            step = power * next(m for m in (1, 2, 5, 10) if m * power >= width * (1 - 1e-9))
            found = (step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1))
            return [float(f"{value:.9g}") for value in found]
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        decades = [10.0**power for power in powers if self.low <= 10.0**power <= self.high]
        if len(decades) > 2:
            return decades[:: math.ceil(len(decades) / 8)]
        return [m * 10.0**power for power in powers for m in (1, 2, 5) if self.low <= m * 10.0**power <= self.high]


def comparison(norms: Norms, cosines: Cosines) -> Tensor:
    """Bars of up to four vectors' norms by block, over the pairs' cosines by block as a heat map.

    A block that a vector lacks has no bar and no cosine.
    """
    font = ImageFont.load_default(TEXT)
    blocks = list(dict.fromkeys(label for found in cosines.values() for label in found if label != ALL))
    titles = {name: (name if len(name) <= 28 else f"{name[:27]}…") for name in norms}
    pairs = [f"{titles[a]} · {titles[b]}" for a, b in cosines]
    names = max(font.getlength(label) for label in (ALL, *blocks))
    upright = names > 56 * FINE
    left, ticks = round(max(map(font.getlength, pairs)) + LINE), 4 * LINE
    sides = {"blocks": max(60 * FINE * len(blocks), 540 * FINE), "whole": 90 * FINE}
    left = max(left, ticks)
    starts = {"blocks": left, "whole": left + sides["blocks"] + ticks}
    top, floor = 2 * LINE, 2 * LINE + 340 * FINE
    heat = floor + LINE // 2
    labels = heat + 48 * FINE * len(pairs)
    bar = round(labels + (names + LINE if upright else 1.5 * LINE))
    page = Image.new("RGB", (starts["whole"] + sides["whole"] + LINE, bar + 3 * LINE), "white")
    draw = ImageDraw.Draw(page)

    x = left
    for colour, title in zip(COLOURS, titles.values(), strict=False):
        draw.rectangle((x, LINE // 2, x + 24 * FINE, LINE // 2 + 12 * FINE), colour)
        draw.text((x + 32 * FINE, LINE // 2 + 6 * FINE), title, INK, font, "lm")
        x += round(32 * FINE + font.getlength(title) + LINE)
    for side, shown in (("blocks", blocks), ("whole", [ALL])):
        start, step = starts[side], sides[side] / len(shown)
        scale = _draw_norms(draw, font, norms, shown, (start, top, start + sides[side], floor))
        if side == "blocks":
            kind = "norm, logarithmic" if scale.logarithmic else "norm"
            draw.text((start - LINE // 2, top - LINE), kind, INK, font, "rs")
        for column, block in enumerate(shown):
            middle = start + (column + 0.5) * step
            for row, ((a, b), found) in enumerate(cosines.items()):
                value = found[block] if norms[a].get(block) and norms[b].get(block) else math.nan
                y = heat + 48 * FINE * row
                area = (start + column * step + FINE, y + FINE, start + (column + 1) * step - FINE, y + 47 * FINE)
                draw.rectangle(area, FAINT if math.isnan(value) else _cold_to_warm(value))
                text = "-" if math.isnan(value) else f"{round(value, 2) + 0.0:.2f}"
                draw.text((middle, y + 24 * FINE), text, "white" if abs(value) > 0.6 else INK, font, "mm")
            if upright:
                _draw_upright(page, font, block, middle, labels + LINE // 2)
            else:
                draw.text((middle, labels + LINE // 2), block, INK, font, "mt")
    for row, pair in enumerate(pairs):
        draw.text((left - LINE // 2, heat + 48 * FINE * (row + 0.5)), pair, INK, font, "rm")

    colours = Scale(-1, 1, left, left + sides["blocks"])
    for x in range(left, left + sides["blocks"]):
        value = 2 * (x - left) / sides["blocks"] - 1
        draw.line((x, bar, x, bar + 12 * FINE), _cold_to_warm(value))
    for value in (-1, -0.5, 0, 0.5, 1):
        draw.text((colours(value), bar + 18 * FINE), f"{value:g}", INK, font, "mt")
    draw.text((left - LINE // 2, bar + 6 * FINE), "cosine", INK, font, "rm")
    return _image(page.reduce(FINE))


def _draw_norms(draw, font, norms: Norms, blocks: Sequence[str], area: tuple[int, int, int, int]) -> Scale:
    """A group of bars for each block, a bar for each vector; returns the norms' axis."""
    left, top, right, floor = area
    shown = [found.get(block, 0.0) for found in norms.values() for block in blocks]
    positive = [norm for found in norms.values() for norm in found.values() if norm > 0]
    whole = [found[ALL] for found in norms.values() if found[ALL] > 0]
    highest = max(shown) or 1.0
    if whole and max(whole) > LOGARITHMIC * min(whole):
        scale = Scale(0.5 * min(positive), 1.3 * max(highest, min(positive)), floor, top, logarithmic=True)
    else:
        scale = Scale(0, 1.05 * highest, floor, top)
    for value in scale.ticks():
        draw.line((left, scale(value), right, scale(value)), FAINT, FINE)
        draw.text((left - LINE // 4, scale(value)), f"{value:g}", INK, font, "rm")
    step = (right - left) / len(blocks)
    width = 0.8 * step / len(norms)
    for i, found in enumerate(norms.values()):
        for column, block in enumerate(blocks):
            if norm := found.get(block, 0.0):
                x = left + (column + 0.1) * step + i * width
                draw.rectangle((x, scale(norm), x + width - FINE, floor), COLOURS[i])
    return scale


def _draw_upright(page: Image.Image, font, text: str, x: float, y: float) -> None:
    """A text from the bottom up, with its end below (x, y)."""
    line = Image.new("L", (math.ceil(font.getlength(text)), LINE))
    ImageDraw.Draw(line).text((0, LINE // 2), text, 255, font, "lm")
    turned = line.rotate(90, expand=True)
    page.paste(INK, (round(x - LINE / 2), round(y)), turned)


def _cold_to_warm(value: float) -> tuple[int, ...]:
    """The colour of a cosine, between those of COLD_TO_WARM."""
    place = (min(max(value, -1.0), 1.0) + 1) / 2 * (len(COLD_TO_WARM) - 1)
    i = min(int(place), len(COLD_TO_WARM) - 2)
    low, high = (ImageColor.getrgb(colour) for colour in COLD_TO_WARM[i : i + 2])
    return tuple(round(a + (place - i) * (b - a)) for a, b in zip(low, high, strict=True))


def loss_curve(losses: Sequence[float]) -> Tensor:
    """The loss of every step, and its running mean, on a logarithmic axis where all losses are above 0."""
    font = ImageFont.load_default(TEXT)
    values = np.asarray(losses, dtype=np.float64)
    width = max(1, len(values) // 20)
    left, top, right, floor = (FINE * pixels for pixels in (96, 40, 744, 366))
    page = Image.new("RGB", (768 * FINE, 432 * FINE), "white")
    draw = ImageDraw.Draw(page)
    low, high = float(values.min()), float(values.max())
    logarithmic = low > 0
    if low == high:
        low, high = (low / 2, high * 2) if logarithmic else (low - 1, high + 1)
    y = Scale(low, high, floor, top, logarithmic)
    x = Scale(1, max(len(values), 2), left + LINE // 2, right - LINE // 2)
    for value in y.ticks():
        draw.line((left, y(value), right, y(value)), FAINT, FINE)
        draw.text((left - LINE // 4, y(value)), f"{value:g}", INK, font, "rm")
    for value in (step for step in x.ticks() if step == round(step)):
        draw.line((x(value), top, x(value), floor), FAINT, FINE)
        draw.text((x(value), floor + LINE // 4), f"{value:g}", INK, font, "mt")
    draw.text(((left + right) / 2, floor + 1.3 * LINE), "step", INK, font, "mt")
    draw.text((left, top - LINE // 2), "loss", INK, font, "rs")

    def points(first: int, heights: np.ndarray) -> Iterator[tuple[float, float]]:
        return ((x(step), y(value)) for step, value in enumerate(heights.tolist(), first))

    pale = tuple(255 - round(0.4 * (255 - c)) for c in ImageColor.getrgb(COLOURS[0]))
    draw.line(list(points(1, values)), pale, FINE, joint="curve")
    draw.circle((x(len(values)), y(values[-1])), 2 * FINE, pale)
    curves = [("loss", pale, FINE)]
    if width > 1:
        mean = np.convolve(values, np.ones(width) / width, mode="valid")
        draw.line(list(points(width, mean)), COLOURS[0], 2 * FINE, joint="curve")
        curves.append((f"mean of {width}", COLOURS[0], 2 * FINE))
    at = right
    for title, colour, thickness in reversed(curves):
        at -= round(font.getlength(title))
        draw.text((at, top - LINE // 2), title, INK, font, "ls")
        draw.line((at - 32 * FINE, top - 0.75 * LINE, at - 8 * FINE, top - 0.75 * LINE), colour, thickness)
        at -= 32 * FINE + LINE
    return _image(page.reduce(FINE))


def _image(page: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(page)[None].astype(np.float32) / 255)


def labelled_grid(
    cells: Sequence[Sequence[Tensor]], rows: Sequence[str], columns: Sequence[str], row_title: str, column_title: str
) -> Tensor:
    """Pictures (H, W, 3) of one size as a table with labels and titles; its sides are multiples of 8."""
    height, width, _ = cells[0][0].shape
    font = ImageFont.load_default(size=min(max(height // 8, 14), 40))
    line = round(1.5 * font.size)
    left = _eighths(max(font.getlength(text) for text in (row_title, *rows)) + font.size)
    top, step_x, step_y = _eighths(2 * line), _eighths(width + 4), _eighths(height + 4)
    page = Image.new("RGB", (left + len(columns) * step_x, top + len(rows) * step_y), "white")
    draw = ImageDraw.Draw(page)
    middle = left + (len(columns) * step_x - step_x + width) // 2
    draw.text((middle, line // 2), column_title, INK, font, "mm")
    draw.text((left // 2, 3 * line // 2), row_title, INK, font, "mm")
    for x, text in enumerate(columns):
        draw.text((left + x * step_x + width // 2, 3 * line // 2), text, INK, font, "mm")
    for y, text in enumerate(rows):
        draw.text((left // 2, top + y * step_y + height // 2), text, INK, font, "mm")
    picture = _image(page)[0]
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            there = picture[top + y * step_y :, left + x * step_x :]
            there[:height, :width] = cell
    return picture[None]


def _eighths(length: float) -> int:
    """The next multiple of 8: the side of a picture that latents can be made of."""
    return 8 * math.ceil(length / 8)
