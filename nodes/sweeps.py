"""Pictures over a grid of λ₁ × λ₂."""

import math

import torch
from comfy_api.latest import io

from ..lcm_core.text import listed, quoted
from . import plotting
from .checks import numbers
from .inputs import CATEGORY, aliases

MAX_PAIRS = 100


def lambda_input(name: str, default: str, tooltip: str):
    return io.String.Input(name, default=default, tooltip=tooltip + " Numbers, or ranges such as 0:1:0.25.")


class Sweep(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_Sweep",
            display_name="λ Sweep",
            category=CATEGORY,
            description="All pairs (λ₁, λ₂) of two lists, for an XY plot. Link them to LoRA Vector Arithmetic, and "
            "what follows it runs once for each τ' = λ₁·a + λ₂·b.",
            **aliases("xy plot", "grid search"),
            inputs=[
                lambda_input("lambda_1", "0, 0.4, 0.8", "The values of λ₁, one for each row of the grid."),
                lambda_input("lambda_2", "0, 0.5, 1", "The values of λ₂, one for each column of the grid."),
            ],
            outputs=[
                io.Float.Output(display_name="lambda_1", is_output_list=True),
                io.Float.Output(display_name="lambda_2", is_output_list=True),
                io.String.Output(display_name="labels", is_output_list=True),
            ],
        )

    @classmethod
    def execute(cls, lambda_1, lambda_2):
        rows, columns = lambdas("lambda_1", lambda_1), lambdas("lambda_2", lambda_2)
        if len(rows) * len(columns) > MAX_PAIRS:
            raise ValueError(f"{len(rows)} × {len(columns)} values are more than {MAX_PAIRS} pairs; give fewer values")
        pairs = [(row, column) for row in rows for column in columns]
        labels = [f"λ₁ {row:g}, λ₂ {column:g}" for row, column in pairs]
        return io.NodeOutput([row for row, _ in pairs], [column for _, column in pairs], labels)


def lambdas(name: str, text: str) -> list[float]:
    """The numbers of a text such as `0, 0.4, 0.8` or `0:1:0.25`, a range with its end in it.

    ValueError for another text, a range without end and numbers that are not finite.
    """
    values: list[float] = []
    for word in text.replace(",", " ").split():
        parts = numbers(name, word.replace(":", " "))
        if len(values) > MAX_PAIRS:
            raise ValueError(f"{name} has more than {MAX_PAIRS} values, the most pairs of a sweep; give fewer values")
        if ":" not in word:
            values += parts
            continue
        first, last, step = parts if len(parts) == 3 else (0.0, 0.0, 0.0)
        steps = (last - first) / step + 1e-9 if step else -1.0
        if not 0 <= steps < MAX_PAIRS:
            raise ValueError(
                f"{name} has {quoted(word)}; a range is start:end:step such as 0:1:0.25, with up to {MAX_PAIRS} values"
            )
        values += [round(first + i * step, 10) for i in range(math.floor(steps) + 1)]
    if not values:
        raise ValueError(f"{name} is {quoted(text)}; give numbers such as 0, 0.4, 0.8, or a range such as 0:1:0.25")
    return values


class SweepGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_SweepGrid",
            display_name="λ Sweep Grid",
            category=CATEGORY,
            description="One picture of a sweep's pictures of τ' = λ₁·a + λ₂·b: λ₁ down, λ₂ across. A batch lies side "
            "by side in its cell.",
            **aliases("xy plot", "contact sheet"),
            inputs=[
                io.Image.Input("images", tooltip="The pictures of all pairs, as they come from the sweep."),
                lambda_input("lambda_1", "0, 0.4, 0.8", "λ Sweep's lambda_1, the labels of the rows."),
                lambda_input("lambda_2", "0, 0.5, 1", "λ Sweep's lambda_2, the labels of the columns."),
            ],
            outputs=[io.Image.Output(display_name="image")],
            is_input_list=True,
        )

    @classmethod
    def execute(cls, images, lambda_1, lambda_2):
        rows, columns = (
            [f"{value:g}" for value in lambdas(name, ", ".join(texts))]
            for name, texts in (("lambda_1", lambda_1), ("lambda_2", lambda_2))
        )
        shapes = {tuple(image.shape) for image in images}
        if len(images) != len(rows) * len(columns) or len(shapes) > 1:
            raise ValueError(
                f"{len(images)} pictures of shape {listed(shapes)} for {len(rows)} × {len(columns)} "
                "cells; give the sweep's own texts and its pictures, all of one size"
            )
        cells = [torch.cat(list(image[..., :3]), dim=1) for image in images]
        table = [cells[start : start + len(columns)] for start in range(0, len(cells), len(columns))]
        return io.NodeOutput(plotting.labelled_grid(table, rows, columns, "lambda_1", "lambda_2"))
