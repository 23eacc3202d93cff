"""docs/troubleshooting/<problem>.jpg: mistakes and what is right, made by the pocket model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tools.workshop import ROOT, Product, Workshop

from .help import WORDS, Studio, jpeg

FOLDER = ROOT / "docs" / "troubleshooting"
OPEN = ("animal", "vehicle", "flower")  # open prompts with a seed that shows the mistakes
SEED = 11
RIGHT = "LCM Sampler, 4 steps, cfg 1"


def products(workshop: Workshop) -> Iterator[Product]:
    for name, picture in pictures(Studio(workshop.host)).items():
        yield Product(FOLDER / f"{name}.jpg", lambda picture=picture: jpeg(picture))


def pictures(studio: Studio) -> dict[str, Tensor]:
    """Problem -> its table: a row for each mistake, then what it should look like."""

    def few(model=None, **inputs) -> list[Tensor]:
        return studio.few(model, OPEN, **{"seed": SEED} | inputs)

    def core(model, sampler: str, scheduler: str, steps: int) -> list[Tensor]:
        settings = {"sampler_name": sampler, "scheduler": scheduler, "steps": steps, "cfg": 1.0}
        return studio.many(model, OPEN, seed=SEED, **settings)

    def batch(**inputs) -> list[Tensor]:
        latent = {"samples": torch.zeros(3, 4, 16, 16)}
        return studio.decode(studio.sample("vehicle", latent=latent, **{"seed": SEED} | inputs))

    lcm, right = studio.apply(studio.lcm), {RIGHT: few()}
    tables = {
        "blurry": {
            "KSampler, 2 steps, no LCM-LoRA": core(studio.model, "euler", "normal", 2),
            "LCM Sampler, 2 steps, no LCM-LoRA": few(studio.model, steps=2),
            "LCM Sampler, 1 step": few(steps=1),
        },
        "burnt": {
            "cfg 7": few(cfg=7.0),
            "cfg 12": few(cfg=12.0),
            "the LCM-LoRA twice": few(studio.apply(studio.lcm, 2.0)),
        },
        "sampler": {
            "LCM-LoRA, euler, 4 steps": core(lcm, "euler", "normal", 4),
            "LCM-LoRA, dpmpp_2m, 8 steps": core(lcm, "dpmpp_2m", "karras", 8),
        },
    }
    weights = ((0.3, 1.0), (0.5, 1.0), (1.5, 1.0), (0.8, 1.0), (0.8, 0.5))
    drawn = {name: studio.table(rows | right, OPEN) for name, rows in tables.items()}
    drawn["style"] = studio.table({f"{a:g} style + {b:g} LCM": studio.few(studio.mix(a, b)) for a, b in weights}, WORDS)
    drawn["same"] = studio.table({"seeds 7, 7, 7": batch(seeds="7, 7, 7"), "seed 11": batch()}, (1, 2, 3), "image")
    return drawn
