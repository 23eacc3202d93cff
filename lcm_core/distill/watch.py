"""What is written of a training while it runs: its scores as a table, its pictures, and what trackers get."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .trainer import Progress
from .validation import Validation

if TYPE_CHECKING:
    from accelerate import Accelerator

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb"}  # name -> what pip installs


def tracking(names: list[str], folder: Path, **options: Any) -> Accelerator:
    """An Accelerator with these trackers, which write below the folder. ImportError for one that is not installed."""
    from accelerate import Accelerator
    from accelerate.tracking import get_available_trackers

    there = [str(getattr(name, "value", name)) for name in get_available_trackers()]
    for name in names:
        if name not in there:
            raise ImportError(f"tracker {name} needs its package (pip install {TRACKERS[name]}); or leave it out")
    return Accelerator(log_with=names, project_dir=folder, **options)


class Watch:
    """Writes into a folder at each look: a line of `scores.csv`, and a picture, such as `000100.png`.

    every: steps between two looks, beside which there is one at the end; without a validation there are none, and
    trackers get the training's loss alone. A picture's upper row are the teacher's, if there is one, the lower what is
    being trained. A training that goes on keeps the lines of its steps before. As a context it ends the trackers.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        validation: Validation | None,
        decode: Callable[[Tensor], Tensor],
        accelerator: Accelerator | None,
        settings: Mapping[str, Any],
    ):
        if every < 1:
            raise ValueError(f"validate_every {every} must be at least 1")
        self.folder, self.every, self.validation, self.decode = folder, every, validation, decode
        self.trackers = accelerator if accelerator is not None and accelerator.log_with else None
        self.writes = accelerator is None or accelerator.is_main_process
        self.settings = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in settings.items()}
        self.last: dict[str, Any] = {}

    def __enter__(self) -> Watch:
        if self.trackers is not None:
            self.trackers.init_trackers("training", config=self.settings)
        return self

    def __exit__(self, *error: object) -> None:
        if self.trackers is not None:
            self.trackers.end_training()

    @property
    def result(self) -> dict[str, Any]:
        """The last scores, and where the rest is."""
        return {**self.last, "training": str(self.folder)} if self.last else {}

    def __call__(self, done: Progress) -> None:
        if done.step == 1 and self.writes:
            (self.folder / "scores.csv").unlink(missing_ok=True)
        numbers = {"training/loss": done.loss}
        if self.validation is not None and (done.step % self.every == 0 or done.step == done.steps):
            score = vars(self.validation.score())
            self.last = {f"validation {name}": value for name, value in score.items() if value is not None}
            numbers |= {name.replace(" ", "/"): value for name, value in self.last.items()}
            if self.writes:
                self.write(done.step, score, self.validation)
        if self.trackers is not None:
            self.trackers.log(numbers, step=done.step)

    def write(self, step: int, score: Mapping[str, float | None], validation: Validation) -> None:
        from PIL import Image

        self.folder.mkdir(exist_ok=True)
        table = self.folder / "scores.csv"
        earlier = table.read_text(encoding="utf-8").splitlines()[1:] if table.exists() else []
        lines = [line for line in earlier if int(line.partition(",")[0]) < step]
        lines.append(",".join(["" if value is None else f"{value!r}" for value in (step, *score.values())]))
        table.write_text("\n".join([",".join(["step", *score]), *lines, ""]), encoding="utf-8")
        rows = [validation.pictures()]
        if validation.config.needs_teacher:
            rows.insert(0, validation.taught)
        grid = as_grid([self.decode(row) for row in rows])
        Image.fromarray(grid).save(self.folder / f"{step:06}.png")
        for tracker in self.trackers.trackers if self.trackers is not None else ():
            if tracker.name == "tensorboard":
                tracker.log_images({"validation/pictures": grid[None]}, step=step, dataformats="NHWC")
            else:
                tracker.log_images({"validation/pictures": [grid]}, step=step)


def as_grid(rows: list[Tensor]) -> np.ndarray:
    """Rows of pictures (N, 3, H, W) in [0, 1] as one of 8 bits, (rows·H, N·W, 3)."""
    lines = [torch.cat([*row], dim=2) for row in rows]
    pixels = torch.cat(lines, dim=1).movedim(0, 2)
    return (255 * pixels).round().to("cpu", torch.uint8).numpy()
