"""Writes the templates, workflows/*.json, their API twins, workflows/api/*.json, and their thumbnails, workflows/*.jpg.

python tools/make_workflows.py COMFYUI BASE [--inputs]

COMFYUI and BASE are .host/comfyui and .host/base after `python tools/run.py demo`: its server describes the nodes. A
thumbnail is made from the template's stored result in tests/host/pictures, or drawn where the template has a drawing.
--inputs draws workflows/inputs/ anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from tools.comfy_client import Client  # noqa: E402
from tools.host_process import HostProcess  # noqa: E402
from tools.templates import TEMPLATES  # noqa: E402
from tools.templates.canvas import ui_format  # noqa: E402
from tools.templates.common import POCKET  # noqa: E402
from tools.templates.graph import Template, api_format  # noqa: E402
from tools.templates.thumbnail import INPUTS, thumbnail  # noqa: E402

WORKFLOWS = ROOT / "workflows"
SIZE, SCALE = 64, 8
FRAMES = 8
COLOURS = [(122, 178, 238), (248, 166, 196), (134, 204, 138), (250, 216, 108)]
ORANGE, DARK = (250, 180, 60), (40, 30, 30)


def files(template: Template, descriptions: dict[str, Any]) -> dict[Path, str]:
    """path -> text of a template and its twin."""
    graph = json.dumps(ui_format(template, descriptions), ensure_ascii=False, indent=1)
    twin = json.dumps(api_format(template, descriptions), ensure_ascii=False, indent=2)
    name = f"{template.name}.json"
    return {WORKFLOWS / name: f"{graph}\n", WORKFLOWS / "api" / name: f"{twin}\n"}


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


def sketch(background: tuple[int, int, int], look: int = 0) -> Image.Image:
    """A cat's head as a child draws it; its face is `look` pixels to the right."""
    large = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), background)
    draw = ImageDraw.Draw(large)

    def scaled(*values: int) -> list[int]:
        return [SCALE * value for value in values]

    draw.polygon(scaled(10, 30, 12, 6, 30, 16), ORANGE)
    draw.polygon(scaled(54, 30, 52, 6, 34, 16), ORANGE)
    draw.ellipse(scaled(8, 12, 56, 56), ORANGE)
    for left, top, right, bottom in ((19, 28, 25, 36), (39, 28, 45, 36), (28, 40, 36, 46)):
        draw.ellipse(scaled(left + look, top, right + look, bottom), DARK)
    return large.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def damaged(picture: np.ndarray) -> Image.Image:
    """The left 3/8 of a picture lost, and a little more than that transparent."""
    alpha = np.full((*picture.shape[:2], 1), 255, np.uint8)
    alpha[:, : SIZE // 2] = 0
    lost = picture.copy()
    lost[:, : SIZE * 3 // 8] = 255
    return Image.fromarray(np.concatenate([lost, alpha], axis=2))


def panda(client: Client) -> np.ndarray:
    """What the pocket model draws in 25 steps."""
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": POCKET}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "panda green", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": SIZE, "height": SIZE, "batch_size": 1}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": 5,
                "steps": 25, "cfg": 2.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0,
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
    }  # fmt: skip
    return client.images(client.queue(graph))[0]


def draw_inputs(client: Client) -> None:
    INPUTS.mkdir(exist_ok=True)
    sketch(COLOURS[0]).save(INPUTS / "pocket_sketch.png", optimize=True)
    first, *others = [sketch(COLOURS[i * len(COLOURS) // FRAMES], (-1) ** i) for i in range(FRAMES)]
    first.save(INPUTS / "pocket_clip.webp", save_all=True, append_images=others, duration=250, loop=0, lossless=True)
    damaged(panda(client)).save(INPUTS / "pocket_damaged.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--inputs", action="store_true", help="draw the templates' input pictures too")
    arguments = parser.parse_args()
    log = arguments.base.parent / "logs" / "make_workflows.log"
    with HostProcess(arguments.comfyui, sys.executable, arguments.base, log, ["--cpu"]) as host:
        host.wait_ready()
        client = Client(host.url)
        if arguments.inputs:
            draw_inputs(client)
        descriptions = client.object_info()
    for template in TEMPLATES:
        for path, text in files(template, descriptions).items():
            path.write_text(text, encoding="utf-8")
        if picture := thumbnail(template):
            picture.save(WORKFLOWS / f"{template.name}.jpg", quality=85, optimize=True)
        else:
            print(f"no thumbnail of {template.name}: run tests/host/test_server.py with --store-pictures, then this")


if __name__ == "__main__":
    main()
