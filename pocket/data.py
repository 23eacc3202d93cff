"""The pocket model's pictures and captions: 48 emoji in eight categories, on six backgrounds, in two drawing styles.

The colour pictures are Noto emoji (npm `emoji-datasource-google`; package MIT, art Apache-2.0), the line drawings are
Fluent high contrast emoji (npm `@iconify-json/fluent-emoji-high-contrast`, MIT). A caption may name a category
("animal"), which leaves the object and its background open, or the object itself ("cat"), with or without the colour
of the background.
"""

import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIZE = 64  # pixels
STYLES = ("colour", "line")
PACKAGES = {"colour": "emoji-datasource-google@16.0.0", "line": "@iconify-json/fluent-emoji-high-contrast@1.2.6"}

BACKGROUNDS = {
    "white": (250, 250, 250), "yellow": (250, 216, 108), "green": (134, 204, 138),
    "blue": (122, 178, 238), "pink": (248, 166, 196), "black": (58, 58, 70),
}  # fmt: skip

# word -> (name in the Noto set, name in the Fluent set)
CATEGORIES = {
    "animal": {"cat": ("cat", "cat-face"), "dog": ("dog", "dog-face"), "panda": ("panda_face", "panda"),
               "fox": ("fox_face", "fox"), "frog": ("frog", "frog"), "pig": ("pig", "pig-face")},
    "fruit": {"apple": ("apple", "red-apple"), "banana": ("banana", "banana"),
              "strawberry": ("strawberry", "strawberry"),
              "pineapple": ("pineapple", "pineapple"), "watermelon": ("watermelon", "watermelon"),
              "grapes": ("grapes", "grapes")},
    "face": {"happy": ("smile", "grinning-face-with-smiling-eyes"),
             "love": ("heart_eyes", "smiling-face-with-heart-eyes"),
             "cool": ("sunglasses", "smiling-face-with-sunglasses"), "angry": ("angry", "angry-face"),
             "crying": ("sob", "loudly-crying-face"), "sleeping": ("sleeping", "sleeping-face")},
    "vehicle": {"car": ("car", "automobile"), "bus": ("bus", "bus"), "bike": ("bike", "bicycle"),
                "rocket": ("rocket", "rocket"), "truck": ("truck", "delivery-truck"), "boat": ("boat", "sailboat")},
    "flower": {"tulip": ("tulip", "tulip"), "rose": ("rose", "rose"), "sunflower": ("sunflower", "sunflower"),
               "hibiscus": ("hibiscus", "hibiscus"), "daisy": ("blossom", "blossom"),
               "blossom": ("cherry_blossom", "cherry-blossom")},
    "food": {"pizza": ("pizza", "pizza"), "burger": ("hamburger", "hamburger"), "fries": ("fries", "french-fries"),
             "donut": ("doughnut", "doughnut"), "cake": ("cake", "shortcake"), "taco": ("taco", "taco")},
    "sport": {"basketball": ("basketball", "basketball"), "soccer": ("soccer", "soccer-ball"),
              "tennis": ("tennis", "tennis"), "baseball": ("baseball", "baseball"),
              "football": ("football", "american-football"), "bowling": ("bowling", "bowling")},
    "sky": {"sun": ("sun_with_face", "sun-with-face"), "moon": ("crescent_moon", "crescent-moon"),
            "rainbow": ("rainbow", "rainbow"), "star": ("star", "star"), "cloud": ("cloud", "cloud"),
            "snowflake": ("snowflake", "snowflake")},
}  # fmt: skip

OBJECTS = tuple(word for words in CATEGORIES.values() for word in words)
CATEGORY_OF = {word: category for category, words in CATEGORIES.items() for word in words}
WORDS = (*CATEGORIES, *OBJECTS, *BACKGROUNDS)

# Shares of the captions: what is left open is what makes few steps hard, so most captions leave much open.
CAPTIONS = {"category": 0.5, "category colour": 0.12, "object": 0.16, "object colour": 0.12, "": 0.10}


@dataclass(frozen=True)
class Pictures:
    """images (N, 3, 64, 64) uint8; object and background (N,) are indices into OBJECTS and BACKGROUNDS."""

    images: Tensor
    object: Tensor
    background: Tensor


def fetch(package: str, cache: Path) -> Path:
    """The npm package's archive in `cache`, downloaded with `npm pack` when it is missing."""
    cache.mkdir(parents=True, exist_ok=True)
    name, version = package.rsplit("@", 1)
    archive = cache / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not archive.exists():
        subprocess.run(["npm", "pack", "--silent", package], cwd=cache, check=True)
    return archive


def _colour_icons(archive: Path) -> dict[str, Image.Image]:
    names = {noto: word for words in CATEGORIES.values() for word, (noto, _) in words.items()}
    with tarfile.open(archive) as tar:
        table = json.load(tar.extractfile("package/emoji.json"))  # type: ignore[arg-type]
        chosen = [entry for entry in table if entry["short_name"] in names]
        wanted = {f"package/img/google/64/{entry['image']}": names[entry["short_name"]] for entry in chosen}
        return {
            wanted[member.name]: Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGBA")  # type: ignore[union-attr]
            for member in tar
            if member.name in wanted
        }


def _line_icons(archive: Path) -> dict[str, Image.Image]:
    import resvg_py

    with tarfile.open(archive) as tar:
        icons = json.load(tar.extractfile("package/icons.json"))["icons"]  # type: ignore[arg-type]
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" width="256" height="256">{}</svg>'
    drawn = {}
    for words in CATEGORIES.values():
        for word, (_, fluent) in words.items():
            body = icons[fluent]["body"].replace("currentColor", "#202028")
            png = bytes(resvg_py.svg_to_bytes(svg_string=svg.format(body)))
            drawn[word] = Image.open(io.BytesIO(png)).convert("RGBA")
    return drawn


def icons(style: str, cache: Path) -> Tensor:
    """Premultiplied RGBA drawings of OBJECTS, 56 px on a 64 px canvas: (48, 4, 64, 64) float32 in [0, 1]."""
    read = {"colour": _colour_icons, "line": _line_icons}[style]
    drawn = read(fetch(PACKAGES[style], cache))
    canvas = np.zeros((len(OBJECTS), SIZE, SIZE, 4), np.float32)
    for i, word in enumerate(OBJECTS):
        rgba = np.asarray(drawn[word].convert("RGBa").resize((56, 56), Image.Resampling.LANCZOS), np.float32) / 255
        canvas[i, 4:60, 4:60] = rgba
    return torch.from_numpy(canvas).permute(0, 3, 1, 2).contiguous()


def composite(rgba: Tensor, colour: Tensor) -> Tensor:
    """Premultiplied (B, 4, H, W) over flat colours (B, 3) in [0, 1]: (B, 3, H, W)."""
    return rgba[:, :3] + (1 - rgba[:, 3:]) * colour[:, :, None, None]


def palette(style: str) -> Tensor:
    """Background colours (6, 3) in [0, 1]; the black of the line drawings is lighter, or their lines would vanish."""
    colours = dict(BACKGROUNDS)
    if style == "line":
        colours["black"] = (128, 128, 140)
    return torch.tensor(list(colours.values()), dtype=torch.float32) / 255


def pictures(style: str, cache: Path) -> Pictures:
    """Every object on every background: 48 x 6 = 288 pictures."""
    drawings, colours = icons(style, cache), palette(style)
    obj, background = torch.cartesian_prod(torch.arange(len(OBJECTS)), torch.arange(len(colours))).unbind(1)
    images = composite(drawings[obj], colours[background]).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Pictures(images, obj, background)


def caption_words(kind: str, obj: int, background: int) -> list[str]:
    """The words of one caption kind of CAPTIONS for one picture; the empty kind has none."""
    word, colour = OBJECTS[obj], list(BACKGROUNDS)[background]
    named = {"category": CATEGORY_OF[word], "object": word, "colour": colour}
    return [named[part] for part in kind.split()]
