"""Pictures of numbers, as IMAGEs: (1, H, W, 3) in [0, 1]. matplotlib is imported when it draws."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")  # of Okabe and Ito: colour-blind people tell them apart
INK, FAINT = "#222222", "#DDDDDD"
ALL = "all"  # the whole vector's entry among the blocks'
LOGARITHMIC = 30  # where one vector's norm is more than so many times another's, the axis is logarithmic

Norms = Mapping[str, Mapping[str, float]]  # vector -> block, or `all` -> norm
Cosines = Mapping[tuple[str, str], Mapping[str, float]]  # two vectors -> block, or `all` -> cosine


def check_matplotlib() -> None:
    """ModuleNotFoundError that says what to install, where matplotlib is not there."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            "drawing needs matplotlib, which ComfyUI's Python has not; install it there with "
            "'python -m pip install matplotlib' and restart ComfyUI"
        )


def comparison(norms: Norms, cosines: Cosines) -> Tensor:
    """Bars of up to four vectors' norms by block, over the pairs' cosines by block as a heat map.

    A block that a vector lacks has no bar and no cosine.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    blocks = list(dict.fromkeys(label for found in cosines.values() for label in found if label != ALL))
    titles = {name: (name if len(name) <= 28 else f"{name[:27]}…").replace("$", r"\$") for name in norms}
    widths, heights = (max(4.5, 0.5 * len(blocks)), 0.75), (3.0, 0.4 * len(cosines), 0.1)
    figure = Figure(figsize=(sum(widths) + 2.4, sum(heights) + 2.0), dpi=120, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    rows = figure.subplots(3, 2, width_ratios=widths, height_ratios=heights)
    (bars, whole_bars), (heat, whole_heat), (scale, unused) = rows

    _draw_norms(bars, norms, blocks)
    _draw_norms(whole_bars, norms, [ALL])
    bars.set_ylabel("norm ‖τ‖" if bars.get_yscale() == "linear" else "norm ‖τ‖, logarithmic")
    bars.legend(titles.values(), loc="lower left", bbox_to_anchor=(0, 1), ncols=len(norms), frameon=False)
    _draw_cosines(heat, norms, cosines, blocks)
    colours = _draw_cosines(whole_heat, norms, cosines, [ALL])
    heat.set_yticks(range(len(cosines)), [f"{titles[a]} · {titles[b]}" for a, b in cosines])
    figure.colorbar(colours, cax=scale, orientation="horizontal", ticks=[-1, -0.5, 0, 0.5, 1], label="cosine")
    unused.set_axis_off()
    for axes in rows.flat:
        axes.spines[:].set_visible(False)
        axes.tick_params(which="both", length=0, colors=INK)
    canvas.draw()
    return _image(canvas)


def _draw_norms(axes, norms: Norms, blocks: Sequence[str]) -> None:
    """A group of bars for each block, a bar for each vector."""
    width = 0.8 / len(norms)
    for i, found in enumerate(norms.values()):
        places = np.arange(len(blocks)) + (i + 0.5) * width - 0.4
        axes.bar(places, [found.get(block, 0.0) for block in blocks], width, color=COLOURS[i])
    positive = [norm for found in norms.values() for norm in found.values() if norm > 0]
    whole = [found[ALL] for found in norms.values() if found[ALL] > 0]
    if whole and max(whole) > LOGARITHMIC * min(whole):
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.5 * min(positive))
    axes.set_xlim(-0.5, len(blocks) - 0.5)
    axes.set_xticks([])
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)


def _draw_cosines(axes, norms: Norms, cosines: Cosines, blocks: Sequence[str]):
    """A row for each pair, a column for each block; returns what a colour bar is made of."""
    table = [
        [found[block] if norms[a].get(block) and norms[b].get(block) else math.nan for block in blocks]
        for (a, b), found in cosines.items()
    ]
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            text = "–" if math.isnan(value) else f"{round(value, 2) + 0.0:.2f}".replace("-", "−")
            colour = "white" if abs(value) > 0.6 else INK
            axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color=colour)
    axes.set_facecolor(FAINT)
    image = axes.imshow(table, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for x in range(1, len(blocks)):
        axes.axvline(x - 0.5, color="white", linewidth=1.5)
    for y in range(1, len(cosines)):
        axes.axhline(y - 0.5, color="white", linewidth=1.5)
    axes.set_xticks(range(len(blocks)), blocks, rotation=90 if len(blocks) > 14 else 0)
    axes.set_yticks([])
    return image


def loss_curve(losses: Sequence[float]) -> Tensor:
    """The loss of every step, and its running mean, on a logarithmic axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), dpi=120, layout="constrained", facecolor="white")
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    values = np.asarray(losses, dtype=np.float64)
    width = max(1, len(values) // 20)
    steps = np.arange(1, len(values) + 1)
    axes.plot(steps, values, color=COLOURS[0], alpha=0.35, linewidth=0.8, label="loss")
    if len(values) >= 2 * width:
        mean = np.convolve(values, np.ones(width) / width, mode="valid")
        axes.plot(steps[width - 1 :], mean, color=COLOURS[0], linewidth=2, label=f"mean of {width}")
    if values.min() > 0:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend(frameon=False)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    canvas.draw()
    return _image(canvas)


def _image(canvas) -> Tensor:
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[None, ..., :3].astype(np.float32) / 255)


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
    picture = torch.from_numpy(np.asarray(page).astype(np.float32) / 255)
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            there = picture[top + y * step_y :, left + x * step_x :]
            there[:height, :width] = cell
    return picture[None]


def _eighths(length: float) -> int:
    """The next multiple of 8: the side of a picture that latents can be made of."""
    return 8 * math.ceil(length / 8)
