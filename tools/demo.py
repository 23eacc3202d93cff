"""The demo: every variant of VARIANTS on every prompt of PROMPTS through a real ComfyUI, a contact sheet and a table.

Started by `python tools/run.py demo`, in the environment that runs ComfyUI.
"""

from __future__ import annotations

import copy
import os
import re
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from comfy_client import Client, Graph, PromptError  # noqa: E402
from host_process import HostError, HostProcess  # noqa: E402

from tools.templates import ON_POCKET  # noqa: E402
from tools.templates.graph import api_format  # noqa: E402

OUTPUT = ROOT / "output" / "demo"
LOG = ROOT / ".host" / "logs" / "demo.log"
PROMPTS = ["animal", "food", "face", "vehicle", "cat", "flower"][: int(os.environ["LCM_DEMO_PROMPTS"])]
SEED = 7
SIZE = 128
GUIDANCE = 3.0


@dataclass(frozen=True)
class Variant:
    """One row: a graph and what it costs. `steps` and `guidance` are read from the graph's sampler."""

    label: str
    graph: Graph

    @property
    def steps(self) -> int:
        return self.graph[sampler_of(self.graph)]["inputs"]["steps"]

    @property
    def guidance(self) -> float:
        return self.graph[sampler_of(self.graph)]["inputs"]["cfg"]

    @property
    def evaluations(self) -> int:
        """UNet evaluations a picture: guidance other than 1 evaluates the prompt and its negative."""
        return self.steps * (1 if self.guidance == 1 else 2)


def core_graph(sampler: str, steps: int, cfg: float, lora: str | None = None) -> Graph:
    """Text to picture with ComfyUI's own nodes and the pocket checkpoint, with a LoRA if one is named."""
    sampling = {
        "seed": 0, "steps": steps, "cfg": cfg, "sampler_name": sampler, "scheduler": "sgm_uniform", "denoise": 1.0,
    }  # fmt: skip
    links = {"model": ["8" if lora else "1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    graph: Graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "pocket.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": SIZE, "height": SIZE, "batch_size": 1}},
        "5": {"class_type": "KSampler", "inputs": sampling | links},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "demo"}},
    }
    if lora:
        inputs = {"model": ["1", 0], "lora_name": lora, "strength_model": 1.0}
        graph["8"] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
    return graph


def template_graph(name: str, descriptions: Mapping[str, Any], steps: int = 4) -> Graph:
    """A template on the pocket model with its number of steps set."""
    graph = api_format(ON_POCKET[name], descriptions)
    graph[sampler_of(graph)]["inputs"]["steps"] = steps
    return graph


def variants(descriptions: Mapping[str, Any]) -> list[Variant]:
    """The rows, each set against the first: the same model with a many-step solver. descriptions: /object_info"""
    return [
        Variant("DPM++ 2M, 25 steps", core_graph("dpmpp_2m", 25, GUIDANCE)),
        Variant("DPM++ 2M, 4 steps", core_graph("dpmpp_2m", 4, GUIDANCE)),
        Variant("DDIM, 4 steps", core_graph("ddim", 4, GUIDANCE)),
        Variant("DDIM, 2 steps", core_graph("ddim", 2, GUIDANCE)),
        Variant("DDIM, 1 step", core_graph("ddim", 1, GUIDANCE)),
        Variant("LCM-LoRA, 1 step", template_graph("lcm_lora_txt2img", descriptions, 1)),
        Variant("LCM-LoRA, 2 steps", template_graph("lcm_lora_txt2img", descriptions, 2)),
        Variant("LCM-LoRA, 4 steps", template_graph("lcm_lora_txt2img", descriptions, 4)),
        Variant("style, DPM++ 2M, 25 steps", core_graph("dpmpp_2m", 25, GUIDANCE, "pocket_style.safetensors")),
        Variant("style + LCM-LoRA, 4 steps", template_graph("lcm_lora_style_mix", descriptions, 4)),
    ]


def sampler_of(graph: Graph) -> str:
    """The id of the one node that samples: it has a positive conditioning and a number of steps."""
    (node,) = [key for key, node in graph.items() if {"positive", "steps"} <= node["inputs"].keys()]
    return node


def for_prompt(graph: Graph, prompt: str, seed: int, prefix: str) -> Graph:
    """A copy of a text-to-picture graph with its prompt, seed, latent size, batch and file name set."""
    graph = copy.deepcopy(graph)
    sampler = graph[sampler_of(graph)]["inputs"]
    sampler["seed"] = seed
    graph[sampler["positive"][0]]["inputs"]["text"] = prompt
    for node in graph.values():
        if node["class_type"] == "EmptyLatentImage":
            node["inputs"] |= {"width": SIZE, "height": SIZE, "batch_size": 1}
        if node["class_type"] == "SaveImage":
            node["inputs"]["filename_prefix"] = prefix
    return graph


class Progress:
    """One bar over all runs, in UNet steps; without a terminal a line a variant."""

    def __init__(self, total: int) -> None:
        self.total, self.before, self.terminal = total, 0, sys.stdout.isatty()

    def reporter(self, label: str) -> Callable[[int, int], None]:
        def report(value: int, of: int) -> None:
            done = min(self.before + value, self.total)
            bar = "█" * (30 * done // self.total)
            if self.terminal:
                state = f"{100 * done // self.total:3d}%  {label:<36}{value:3d}/{of}"
                print(f"\r  {bar:·<30} {state}", end="", flush=True)

        return report

    def finish(self, steps: int) -> None:
        self.before += steps

    def line(self, text: str) -> None:
        print(f"\r{text:<78}" if self.terminal else text, flush=True)


@dataclass(frozen=True)
class Row:
    variant: Variant
    images: list[np.ndarray]
    seconds: float


def sample(client: Client, rows: list[Variant]) -> Iterator[Row]:
    """Every variant on every prompt. Seconds are the median, from queueing to the picture's bytes, of one picture."""
    progress = Progress(len(PROMPTS) * sum(variant.steps for variant in rows))
    for index, variant in enumerate(rows):
        images, seconds = [], []
        for number, prompt in enumerate(PROMPTS):
            graph = for_prompt(variant.graph, prompt, SEED + number, f"demo/{index:02d}_{prompt}")
            start = time.perf_counter()
            pictures = client.images(client.queue(graph, progress.reporter(f"{variant.label}: {prompt}")))
            seconds.append((time.perf_counter() - start) / len(pictures))
            images += pictures
            progress.finish(variant.steps)
        row = Row(variant, images, statistics.median(seconds))
        progress.line(f"  {variant.label}, guidance {variant.guidance:g}: {row.seconds:.2f} s a picture")
        yield row


def contact_sheet(rows: list[Row]) -> Image.Image:
    """A row a variant, a column a picture, with the prompts above and the costs at the left."""
    cell, gap, left, top = SIZE, 6, 340, 40
    sheet = Image.new("RGB", (left + (cell + gap) * len(PROMPTS), top + (cell + gap) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(size=21), ImageFont.load_default(size=17)
    for x, prompt in enumerate(PROMPTS):
        draw.text((left + x * (cell + gap) + cell // 2, top // 2), prompt, "black", large, anchor="mm")
    for y, row in enumerate(rows):
        middle = top + y * (cell + gap) + cell // 2
        cost = f"guidance {row.variant.guidance:g} · {row.variant.evaluations} UNet evaluations"
        draw.text((14, middle - 14), row.variant.label, "black", large, anchor="lm")
        draw.text((14, middle + 14), f"{cost} · {row.seconds:.2f} s", "#555", small, anchor="lm")
        for x, image in enumerate(row.images):
            sheet.paste(Image.fromarray(image), (left + x * (cell + gap), top + y * (cell + gap)))
    return sheet


def write_pictures(rows: list[Row]) -> Path:
    """Every picture and contact_sheet.png into output/demo/, in place of an earlier run's."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    for index, row in enumerate(rows):
        name = re.sub(r"\W+", "_", row.variant.label.lower())
        for number, image in enumerate(row.images):
            Image.fromarray(image).save(OUTPUT / f"{index:02d}_{name}_{number:02d}_{PROMPTS[number]}.png")
    sheet = OUTPUT / "contact_sheet.png"
    contact_sheet(rows).save(sheet)
    return sheet


def table(rows: list[Row], clarity: Callable[[np.ndarray], float]) -> str:
    lines = [f"{'variant':<28}{'steps':>6}{'guidance':>10}{'UNet evaluations':>18}{'seconds':>9}{'clarity':>9}"]
    for row in rows:
        variant = row.variant
        lines.append(
            f"{variant.label:<28}{variant.steps:>6}{variant.guidance:>10g}{variant.evaluations:>18}"
            f"{row.seconds:>9.2f}{clarity(np.stack(row.images)):>9.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    start = time.perf_counter()
    comfyui, python = Path(os.environ["LCM_HOST_DIR"]), os.environ["LCM_HOST_PYTHON"]
    print("- start ComfyUI", flush=True)
    base, extra = Path(os.environ["LCM_HOST_BASE"]), shlex.split(os.environ["LCM_HOST_ARGS"])
    with HostProcess(comfyui, python, base, LOG, extra) as host:
        from pocket.judge import clarity, load_judge

        judge = load_judge()
        host.wait_ready()
        client = Client(host.url)
        rows = variants(client.object_info())
        print("- load the model and warm up", flush=True)
        for variant in (rows[-1], rows[1]):
            client.queue(for_prompt(variant.graph, "", 0, "demo/warm_up"))
        print(f"- {len(rows)} variants of {len(PROMPTS)} pictures", flush=True)
        try:
            results = list(sample(client, rows))
        except (PromptError, ConnectionError, TimeoutError) as error:
            raise HostError(host.report(f"\nThis step failed: sampling: {error}")) from error
    sheet = write_pictures(results)
    print("\n" + table(results, lambda images: clarity(judge, images)))
    print("\nclarity: how sure a classifier is of what the pictures show and in whose hand, 0 to 1.")
    print("seconds: median for one picture on the warm server, text encoding and decoding included.")
    print(f"\nContact sheet: {sheet}\nThe whole demo took {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    try:
        main()
    except HostError as error:
        raise SystemExit(
            f"{error}\nWhat to do: read the log; if a file is missing, run the same command again."
        ) from None
    except KeyboardInterrupt:
        raise SystemExit("\nStopped.") from None
