"""What a distillation trains on: a folder of pictures with captions, or latents that the teacher draws itself.

Everything ends in `Examples`, which gives each step its batch, of one size, from the step's number alone.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..consistency import Prediction, predict_x0
from ..files import path_below
from ..guidance import guided
from ..noise import step_noise
from ..schedule import Schedule, trailing_levels
from ..solvers import ddim_sample
from ..text import listed
from .identity import fingerprint
from .losses import Cond, Model

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
Size = tuple[int, int]  # width, height


@dataclass(frozen=True, eq=False)
class Examples:
    """Latents (C, H, W) each with its conditioning, tuples of tensors, and the empty prompt's `uncond` for all.

    A tensor of `cond` or `uncond` has no batch axis. `examples(step)` is the batch of a step, as `distill` wants it:
    every example once in an epoch, in an order that `seed` gives, and only examples of one shape in a batch; a batch
    that would be short takes more from its own shape. ValueError for no latents, a cond too many or too few, and
    values that are not finite.
    """

    latents: Sequence[Tensor]
    cond: Sequence[Cond]
    uncond: Cond
    batch: int
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.latents) == 0:
            raise ValueError("there are no latents; give at least one, from pictures or from the teacher")
        if len(self.latents) != len(self.cond):
            raise ValueError(f"{len(self.latents)} latents, but {len(self.cond)} captions; give one to each latent")
        if self.batch < 1:
            raise ValueError(f"batch {self.batch} must be at least 1")
        bad = [i for i, z in enumerate(self.latents) if not z.isfinite().all()]
        if bad:
            raise ValueError(f"latents {listed(map(str, bad))} have values that are not finite; encode them in float32")

    @property
    def identity(self) -> dict[str, str]:
        """What a state must share to go on with these examples, for `distill`."""
        prompts = {f"{i}.{j}": c for i, cond in enumerate(self.cond) for j, c in enumerate(cond)}
        return {
            "batch size": str(self.batch),
            "order's seed": str(self.seed),
            "latents": fingerprint({str(i): z for i, z in enumerate(self.latents)}),
            "prompts": fingerprint(prompts),
            "empty prompt": fingerprint({str(j): c for j, c in enumerate(self.uncond)}),
        }

    @cached_property
    def buckets(self) -> tuple[tuple[int, ...], ...]:
        """The numbers of the examples that have the same shapes."""
        groups = defaultdict(list)
        for i, (z, cond) in enumerate(zip(self.latents, self.cond, strict=True)):
            groups[z.shape, tuple(c.shape for c in cond)].append(i)
        return tuple(map(tuple, groups.values()))

    def __call__(self, step: int) -> tuple[Tensor, Cond, Cond]:
        epoch, place = divmod(step, sum(math.ceil(len(bucket) / self.batch) for bucket in self.buckets))
        chosen = epoch_batches(self.buckets, self.batch, self.seed, epoch)[place]
        z = torch.stack([self.latents[i] for i in chosen])
        cond = tuple(torch.stack(column) for column in zip(*(self.cond[i] for i in chosen), strict=True))
        return z, cond, tuple(c.expand(len(chosen), *c.shape) for c in self.uncond)


@lru_cache(maxsize=2)
def epoch_batches(buckets: tuple[tuple[int, ...], ...], batch: int, seed: int, epoch: int) -> list[list[int]]:
    """Every number of the buckets, shuffled, in batches of one bucket, whose last repeats its first if it is short."""
    random = np.random.default_rng([seed, epoch])
    batches = []
    for bucket in buckets:
        order = random.permutation(bucket)
        order = np.resize(order, math.ceil(len(bucket) / batch) * batch)
        batches += order.reshape(-1, batch).tolist()
    random.shuffle(batches)
    return batches


@dataclass(frozen=True)
class Picture:
    """A picture's file, its caption and its size in pixels (width, height)."""

    path: Path
    caption: str
    size: Size


def read_folder(folder: Path) -> list[Picture]:
    """The pictures of a folder, sorted by name, with their captions.

    A caption is in `<name>.txt` beside its picture, or all are in `metadata.jsonl`, lines such as
    {"file_name": "cat.png", "text": "a cat"}. Raises FileNotFoundError without folder or pictures, and ValueError,
    naming files, for a picture without caption or with an empty one, a caption without picture, a file named twice or
    outside the folder, and what is no picture.
    """
    from PIL import Image, UnidentifiedImageError

    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give one with pictures and their captions")
    folder = folder.resolve()
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{folder} has no pictures; put {', '.join(SUFFIXES)} files there")
    table = folder / "metadata.jsonl"
    captions = _metadata(table) if table.is_file() else _texts(files)
    missing = [str(path.relative_to(folder)) for path in files if path not in captions]
    if missing:
        raise ValueError(
            f"{len(files)} pictures, but {len(missing)} without caption ({listed(missing)}); write each one's beside "
            "it, as <name>.txt, or all in metadata.jsonl"
        )
    empty = [str(path.relative_to(folder)) for path in files if not captions[path]]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(files)} pictures have an empty caption ({listed(empty)}); write what they show, or "
            "move them elsewhere"
        )
    strange = [str(path) for path in captions if path not in files]
    if strange:
        raise ValueError(f"{table} has captions of {listed(strange)}, which are not there; correct file_name")
    pictures = []
    for path in files:
        try:
            with Image.open(path) as image:
                pictures.append(Picture(path, captions[path], _upright(image).size))
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{path} is not a readable picture ({error}); replace or remove it") from error
    return pictures


def bucket_sizes(area: int = 512 * 512, step: int = 64, widest: float = 2.0) -> list[Size]:
    """Sizes (width, height) in multiples of `step` whose area is as near to `area` as it gets without passing it.

    For every width the greatest height, within 1 : widest. ValueError if there are none.
    """
    sizes = set()
    for width in range(step, int(math.sqrt(area * widest)) + 1, step):
        height = area // width // step * step
        if height and 1 / widest <= width / height <= widest:
            sizes |= {(width, height), (height, width)}
    if not sizes:
        raise ValueError(f"an area of {area} has no size in multiples of {step}; use at least {step * step}")
    return sorted(sizes)


def bucket_of(size: Size, sizes: Iterable[Size]) -> Size:
    """The bucket nearest in aspect to a picture; of two as near, the larger."""
    aspect = math.log(size[0] / size[1])
    return min(sizes, key=lambda s: (round(abs(math.log(s[0] / s[1]) - aspect), 6), -s[0] * s[1]))


def load_picture(picture: Picture, size: Size) -> Tensor:
    """The picture scaled to cover `size` and cropped to its middle: (3, height, width) float32 in [0, 1]."""
    from PIL import Image, ImageOps

    with Image.open(picture.path) as image:
        upright = _upright(image)
        if "A" in upright.getbands() or "transparency" in upright.info:
            rgba = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        fitted = ImageOps.fit(upright.convert("RGB"), size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(fitted, np.float32) / 255).permute(2, 0, 1).contiguous()


def encode_pictures(
    pictures: Iterable[Picture], encode: Callable[[Tensor], Tensor], sizes: Sequence[Size]
) -> Iterator[Tensor]:
    """The latent (C, H, W) of each picture, at its bucket's size; encode: (1, 3, H, W) in [0, 1] -> (1, C, H, W)."""
    for picture in pictures:
        with torch.no_grad():
            yield encode(load_picture(picture, bucket_of(picture.size, sizes))[None])[0]


def sample_latents(
    teacher: Model,
    cond: Cond,
    uncond: Cond,
    shape: tuple[int, ...],
    *,
    schedule: Schedule,
    prediction: Prediction = "epsilon",
    scale: float = 7.5,
    steps: int = 25,
    seed: int = 0,
    first: int = 0,
) -> Tensor:
    """Latents (B, …) that the teacher draws for prompts, by DDIM under guidance, to distil it without data.

    cond and uncond are tuples of tensors (B, ...); without uncond, (), the teacher is not guided, whatever `scale`.
    shape is a latent's, such as (C, H, W). Of a flow DDIM is Euler's method. `first` is the number of the first image
    among all that are drawn in batches: image i depends on (seed, i) and its own prompt alone.
    """
    batch = len(cond[0])
    both = tuple(torch.cat(pair) for pair in zip(cond, uncond, strict=True)) if uncond else cond

    def denoise(x: Tensor, t: float) -> Tensor:
        rows = torch.cat([x, x]) if uncond else x
        output = teacher(rows, torch.full((len(rows),), t, device=x.device), both, None).to(x.dtype)
        if uncond:
            with_cond, without = output.chunk(2)
            output = guided(with_cond, without, scale)
        return predict_x0(output, x, t, schedule, prediction)

    x = step_noise((batch, *shape), seed, 0, range(first, first + batch)).to(cond[0].device)
    with torch.no_grad():
        return ddim_sample(denoise, x, trailing_levels(steps, schedule), schedule)


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def _texts(files: Sequence[Path]) -> dict[Path, str]:
    beside = {path: path.with_suffix(".txt") for path in files}
    return {path: text.read_text(encoding="utf-8").strip() for path, text in beside.items() if text.is_file()}


def _metadata(table: Path) -> dict[Path, str]:
    captions: dict[Path, str] = {}
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            path, caption = path_below(table.parent, entry["file_name"]), str(entry["text"]).strip()
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f'line {number} of {table} must be like {{"file_name": "cat.png", "text": "a cat"}}: {error!r}'
            ) from error
        if path in captions:
            raise ValueError(f"line {number} of {table} has {entry['file_name']} again; keep one of its captions")
        captions[path] = caption
    return captions
