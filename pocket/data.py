"""The pocket model's pictures and captions: 80 objects in eight categories, drawn by three hands, on eight backgrounds.

The drawings are vectors, the same objects in three emoji sets: Noto (npm `@iconify-json/noto`, Apache-2.0), Twemoji
(`@iconify-json/twemoji`, CC BY 4.0) and Fluent flat (`@iconify-json/fluent-emoji-flat`, MIT), so that a word stands for
pictures that differ in kind. Size, place and tint vary, too. A caption may name a category ("animal"), which leaves the
object and its background open, or the object itself ("cat"), with or without the background's colour. In the second
style the same pictures are cut from paper: four tones of red, a white edge, a shadow.
"""

import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

SIZE = 128  # pixels
STYLES = ("colour", "paper")
SETS = {"noto": "@iconify-json/noto@1.2.9", "twemoji": "@iconify-json/twemoji@1.2.5",
        "fluent": "@iconify-json/fluent-emoji-flat@1.2.6"}  # fmt: skip
DRAWN = (92, 100, 108)  # pixels a drawing is wide
SHIFT = 6  # pixels at most from the middle
VARIANTS = {"train": 96, "held out": 16}  # pictures of each object by each hand

BACKGROUNDS = {
    "white": (246, 246, 246), "yellow": (250, 216, 108), "green": (134, 204, 138), "blue": (122, 178, 238),
    "pink": (248, 166, 196), "black": (58, 58, 70), "purple": (172, 140, 222), "orange": (248, 168, 100),
}  # fmt: skip

# word -> name in the sets
CATEGORIES = {
    "animal": {"cat": "cat-face", "dog": "dog-face", "panda": "panda", "fox": "fox", "frog": "frog", "pig": "pig-face",
               "tiger": "tiger-face", "koala": "koala", "rabbit": "rabbit-face", "monkey": "monkey-face"},
    "fruit": {"apple": "red-apple", "banana": "banana", "strawberry": "strawberry", "pineapple": "pineapple",
              "watermelon": "watermelon", "grapes": "grapes", "lemon": "lemon", "cherries": "cherries",
              "peach": "peach", "pear": "pear"},
    "face": {"happy": "grinning-face-with-smiling-eyes", "love": "smiling-face-with-heart-eyes",
             "cool": "smiling-face-with-sunglasses", "angry": "angry-face", "crying": "loudly-crying-face",
             "sleeping": "sleeping-face", "laughing": "face-with-tears-of-joy", "sick": "nauseated-face",
             "party": "partying-face", "thinking": "thinking-face"},
    "vehicle": {"car": "automobile", "bus": "bus", "bike": "bicycle", "rocket": "rocket", "truck": "delivery-truck",
                "boat": "sailboat", "tractor": "tractor", "helicopter": "helicopter", "taxi": "taxi",
                "ambulance": "ambulance"},
    "flower": {"tulip": "tulip", "rose": "rose", "sunflower": "sunflower", "hibiscus": "hibiscus",
               "daisy": "blossom", "blossom": "cherry-blossom", "bouquet": "bouquet", "lotus": "lotus",
               "orchid": "hyacinth", "lily": "white-flower"},
    "food": {"pizza": "pizza", "burger": "hamburger", "fries": "french-fries", "donut": "doughnut",
             "cake": "shortcake", "taco": "taco", "cookie": "cookie", "popcorn": "popcorn", "pretzel": "pretzel",
             "cupcake": "cupcake"},
    "sport": {"basketball": "basketball", "soccer": "soccer-ball", "tennis": "tennis", "baseball": "baseball",
              "football": "american-football", "bowling": "bowling", "volleyball": "volleyball",
              "boxing": "boxing-glove", "golf": "flag-in-hole", "skateboard": "skateboard"},
    "sky": {"sun": "sun-with-face", "moon": "crescent-moon", "rainbow": "rainbow", "star": "star", "cloud": "cloud",
            "snowflake": "snowflake", "comet": "comet", "planet": "ringed-planet", "storm": "cloud-with-lightning",
            "tornado": "tornado"},
}  # fmt: skip

OBJECTS = tuple(word for words in CATEGORIES.values() for word in words)
CATEGORY_OF = {word: category for category, words in CATEGORIES.items() for word in words}
WORDS = (*CATEGORIES, *OBJECTS, *BACKGROUNDS)

# Shares of the captions: what is left open is what makes few steps hard, so most captions leave much open.
CAPTIONS = {"category": 0.4, "category colour": 0.12, "object": 0.2, "object colour": 0.18, "": 0.10}

# Darkest to lightest paper.
TONES = torch.tensor([(112, 14, 30), (190, 32, 44), (232, 120, 96), (255, 240, 214)], dtype=torch.float32) / 255
EDGE = 7  # pixels across which the white edge reaches from a pixel of the drawing


@dataclass(frozen=True)
class Pictures:
    """images (N, 3, 128, 128) uint8; hand, object and background (N,) are indices into SETS, OBJECTS, BACKGROUNDS."""

    images: Tensor
    hand: Tensor
    object: Tensor
    background: Tensor


def fetch(package: str, folder: Path) -> Path:
    """The npm package's archive in `folder`, downloaded with `npm pack` when it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    name, version = package.rsplit("@", 1)
    archive = folder / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not archive.exists():
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True)
    return archive


def _draw(archive: Path) -> np.ndarray:
    """One set's OBJECTS, premultiplied, at the sizes DRAWN in the middle of a canvas: (80, 3, 4, 128, 128) uint8."""
    import resvg_py

    with tarfile.open(archive) as tar:
        icons = json.load(tar.extractfile("package/icons.json"))  # type: ignore[arg-type]
    width = icons["width"]
    canvas = np.zeros((len(OBJECTS), len(DRAWN), 4, SIZE, SIZE), np.uint8)
    for o, word in enumerate(OBJECTS):
        name = CATEGORIES[CATEGORY_OF[word]][word]
        body = icons["icons"][name]["body"]
        for s, pixels in enumerate(DRAWN):
            svg = (
                f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="0 0 {width} {width}" width="{pixels}" height="{pixels}">{body}</svg>'
            )
            drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
            rgba = np.asarray(drawn.convert("RGBa")).transpose(2, 0, 1)
            start = (SIZE - pixels) // 2
            canvas[o, s, :, start : start + pixels, start : start + pixels] = rgba
    return canvas


@cache
def drawings(folder: Path) -> Tensor:
    """Every set's drawings, kept in `folder` once drawn: (3 sets, 80, 3 sizes, 4, 128, 128) uint8."""
    kept = folder / "drawings.npz"
    if not kept.exists():
        drawn = np.stack([_draw(fetch(package, folder)) for package in SETS.values()])
        np.savez_compressed(kept, drawn=drawn)
    return torch.from_numpy(np.load(kept)["drawn"])


def in_paper(rgba: Tensor) -> Tensor:
    """Premultiplied drawings (B, 4, H, W) as cut from paper, with a white edge and a shadow: the same shape."""
    alpha = rgba[:, 3:]
    weights = torch.tensor((0.3, 0.59, 0.11), device=rgba.device)[:, None, None]
    light = (rgba[:, :3] * weights).sum(1) / alpha[:, 0].clamp(min=1e-3)
    tone = (light * len(TONES) - 0.5).clamp(0, len(TONES) - 1)
    below = tone.floor().clamp(max=len(TONES) - 2)
    above = (0.5 + 4 * (tone - below - 0.5)).clamp(0, 1)  # a step that is not jagged
    darker, lighter = (TONES.to(rgba.device)[below.long() + i].permute(0, 3, 1, 2) for i in (0, 1))
    tones = darker.lerp(lighter, above[:, None])
    sheet = F.max_pool2d(alpha, EDGE, stride=1, padding=EDGE // 2)
    shadow = 0.45 * gaussian_blur(F.pad(sheet, (3, -3, 4, -4)), [9, 9], [2.5, 2.5])
    covered = sheet + (1 - sheet) * shadow
    return torch.cat([tones * alpha + (sheet - alpha).clamp(min=0), covered], dim=1)


def ground(colour: Tensor, slope: Tensor) -> Tensor:
    """Backgrounds (B, 3, 128, 128) of colours (B, 3), lighter by slope (B,) at the top and darker below."""
    down = torch.linspace(1, -1, SIZE, device=colour.device)[:, None].expand(SIZE, SIZE)
    return colour[:, :, None, None] + slope[:, None, None, None] * down


def _moved(canvas: Tensor, right: int, down: int) -> Tensor:
    return F.pad(canvas, (right, -right, down, -down))


def pictures(style: str, folder: Path, split: str = "train", device: torch.device | str = "cpu") -> Pictures:
    """VARIANTS[split] pictures of each of 3 × 80 drawings, each with a size, place, background and tint of its own."""
    generator = torch.Generator().manual_seed(list(VARIANTS).index(split))
    drawn = drawings(folder)
    rows = torch.cartesian_prod(*map(torch.arange, (VARIANTS[split], *drawn.shape[:2])))
    count = len(rows)
    background = torch.randint(len(BACKGROUNDS), (count,), generator=generator)
    size = torch.randint(len(DRAWN), (count,), generator=generator)
    shifts = torch.randint(-SHIFT, SHIFT + 1, (count, 2), generator=generator).tolist()
    palette = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32) / 255
    colour = palette[background] + 0.03 * torch.randn(count, 3, generator=generator)
    slope = 0.05 * torch.randn(count, generator=generator)
    images = torch.empty(count, 3, SIZE, SIZE, dtype=torch.uint8, device=device)
    for part in torch.arange(count).split(480):
        rgba = torch.stack([_moved(drawn[rows[i, 1], rows[i, 2], size[i]], *shifts[i]) for i in part.tolist()])
        rgba = rgba.to(device).float() / 255
        if style == "paper":
            rgba = in_paper(rgba)
        whole = rgba[:, :3] + (1 - rgba[:, 3:]) * ground(colour[part].to(device), slope[part].to(device))
        images[part] = whole.clamp(0, 1).mul(255).round().to(torch.uint8)
    return Pictures(images, *(v.to(device) for v in (rows[:, 1], rows[:, 2], background)))


def caption_words(kind: str, obj: int, background: int) -> list[str]:
    """The words of one caption kind of CAPTIONS for one picture; the empty kind has none."""
    word, colour = OBJECTS[obj], list(BACKGROUNDS)[background]
    named = {"category": CATEGORY_OF[word], "object": word, "colour": colour}
    return [named[part] for part in kind.split()]
