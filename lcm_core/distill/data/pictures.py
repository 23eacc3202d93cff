"""Pictures as pixels: the sizes they are brought to, how they are cropped and turned, and their latents."""

from __future__ import annotations

import io
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .source import Sample

if TYPE_CHECKING:
    from PIL import Image

Size = tuple[int, int]  # width, height
TURNED = (5, 6, 7, 8)  # EXIF orientations that lie on their side
ORIENTATION = 0x0112


@dataclass(frozen=True)
class Views:
    """In how many ways each picture is encoded.

    crop: what is left of a picture that was scaled to cover its size, "center" or "random". flip: every other view is
    mirrored. What is random follows from the picture's own bytes and the view's number, so that it is the same in
    every training. ValueError for more views than there are.
    """

    count: int = 1
    crop: str = "center"
    flip: bool = False

    def __post_init__(self) -> None:
        most = math.inf if self.crop == "random" else 1 + self.flip
        if self.crop not in ("center", "random"):
            raise ValueError(f"crop {self.crop!r} must be center or random")
        if not 1 <= self.count <= most:
            allowed = "at least 1" if self.crop == "random" else f"1 … {most} for crop center, with flip {self.flip}"
            raise ValueError(f"views {self.count} must be {allowed}; more would be the same again, use crop random")

    def of(self, digest: str) -> list[tuple[tuple[float, float], bool]]:
        """Of the picture with this digest each view's place of the crop, from 0 to 1 in both directions, and flip."""
        random = np.random.default_rng(int(digest, 16))
        first = random.integers(2)
        views = []
        for view in range(self.count):
            left, top = random.random(2).tolist()
            place = (left, top) if self.crop == "random" else (0.5, 0.5)
            views.append((place, self.flip and bool((first + view) % 2)))
        return views


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


def size_of(sample: Sample) -> Size:
    """(width, height) of a picture as it is seen, from its header. ValueError for what is no picture."""
    with opened(sample) as image:
        width, height = image.size
        at_end = image.format == "PNG" and "exif" not in image.info  # if at all: to look would decode it
        return (height, width) if not at_end and image.getexif().get(ORIENTATION) in TURNED else (width, height)


def load_picture(sample: Sample, size: Size, views: Views) -> Tensor:
    """Every view of a picture, scaled to cover `size` and cropped to it: (V, 3, height, width) uint8.

    What is transparent is white. ValueError for a damaged picture.
    """
    from PIL import Image, ImageOps

    with opened(sample) as image:
        upright = ImageOps.exif_transpose(image)
        if "A" in upright.getbands() or "transparency" in upright.info:
            rgba = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        rgb = upright.convert("RGB")
        fitted = []
        for place, flip in views.of(sample.digest):
            view = ImageOps.fit(rgb, size, Image.Resampling.LANCZOS, centering=place)
            fitted.append(np.asarray(ImageOps.mirror(view) if flip else view))
    return torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2)


def encode_pictures(
    samples: Sequence[Sample],
    encode: Callable[[Tensor], Tensor],
    sizes: Sequence[Size],
    views: Views = Views(),  # noqa: B008
    batch: int = 8,
) -> Iterator[tuple[int, Size, Tensor]]:
    """(the picture's number, its bucket's size, its latents (V, C, H, W) on the CPU), bucket after bucket.

    encode: (B, 3, H, W) in [0, 1] -> (B, C, H, W), for up to `batch` views at once; threads read the pictures of the
    next batch meanwhile. ValueError for what is no picture, and for latents that are not finite.
    """
    buckets: dict[Size, list[int]] = defaultdict(list)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "lcm-lora-pictures") as pool:
        for i, size in enumerate(pool.map(size_of, samples)):
            buckets[bucket_of(size, sizes)].append(i)
        step = max(1, batch // views.count)
        groups = [(size, at[k : k + step]) for size, at in buckets.items() for k in range(0, len(at), step)]

        def begin(size: Size, numbers: Sequence[int]) -> Iterator[Tensor]:
            return pool.map(lambda i: load_picture(samples[i], size, views), numbers)

        loading = [begin(*group) for group in groups[:1]]
        for k, (size, numbers) in enumerate(groups):
            loading += [begin(*group) for group in groups[k + 1 : k + 2]]
            pixels = torch.cat(list(loading.pop(0))).float() / 255
            with torch.no_grad():
                latents = torch.cat([encode(part) for part in pixels.split(batch)]).cpu()
            for i, z in zip(numbers, latents.split(views.count), strict=True):
                if not z.isfinite().all():
                    raise ValueError(
                        f"the latent of {samples[i].name} has values that are not finite; use --dtype float32, or "
                        "bfloat16"
                    )
                yield i, size, z.clone()


@contextmanager
def opened(sample: Sample) -> Iterator[Image.Image]:
    """A picture whose header was read; ValueError for what is none, also when it is read on inside."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(sample.content)) as image:
            yield image
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{sample.name} is not a readable picture ({error}); replace or remove it") from error
