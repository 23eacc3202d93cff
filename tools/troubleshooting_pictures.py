"""The pictures of docs/troubleshooting.md, docs/troubleshooting/<problem>.jpg, made by the pocket model.

python tools/troubleshooting_pictures.py COMFYUI BASE

COMFYUI and BASE are .host/comfyui and .host/base after `python tools/run.py demo`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from tools.help_pictures import WORDS, Studio, jpeg  # noqa: E402
from tools.inprocess import ROOT, load_host_of_arguments  # noqa: E402

FOLDER = ROOT / "docs" / "troubleshooting"
OPEN = ("animal", "vehicle", "flower")  # open prompts with a seed that shows the mistakes
SEED = 11
RIGHT = "LCM Sampler, 4 steps, cfg 1"


def pictures(studio: Studio) -> dict[str, Tensor]:
    """Problem -> its table: a row for each mistake, then what it should look like."""

    def few(model=None, **inputs) -> list[Tensor]:
        return studio.few(model, OPEN, **{"seed": SEED} | inputs)

    def core(model, sampler: str, scheduler: str, steps: int) -> list[Tensor]:
        settings = {"sampler_name": sampler, "scheduler": scheduler, "steps": steps, "cfg": 1.0}
        return studio.many(model, OPEN, seed=SEED, **settings)

    def batch(**inputs) -> list[Tensor]:
        latent = {"samples": torch.zeros(3, 4, 8, 8)}
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


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, picture in pictures(Studio(load_host_of_arguments(__doc__))).items():
        file = FOLDER / f"{name}.jpg"
        file.write_bytes(jpeg(picture))
        print(f"{file.relative_to(ROOT)}: {file.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
