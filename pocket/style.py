"""The pocket style LoRA: fine-tunes the teacher on the paper-cut pictures, through the same LoRA adapter.

`python -m pocket.style` trains it.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from lcm_core.distill import inject_lora

from .data import pictures
from .lcm import TARGETS
from .teacher import Captions, encode_pictures, epsilon_loss, load_teacher
from .training import DEVICE, processes, train

WEIGHTS = Path(__file__).parent / "weights" / "style_lora.safetensors"
BATCH, STEPS, RANK = 128, 2000, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    rank, count = processes()
    torch.manual_seed(0)

    data = pictures("paper", args.cache, device=DEVICE)
    latents = encode_pictures(data)
    unet, words = load_teacher(device=DEVICE)
    captions = Captions(words)
    adapter = inject_lora(unet, TARGETS, RANK, clamp=True)

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (BATCH // count,), generator=generator, device=DEVICE)
        return epsilon_loss(unet, latents[rows], *words(captions.draw(data, rows, generator)), generator)

    train("style LoRA", {"adapter": adapter}, loss_of, steps=args.steps, lr=1e-3,
          state=args.cache / "style_lora.pt", seed=2)  # fmt: skip
    if rank == 0:
        adapter.vector().save(args.out, dtype=torch.float16)


if __name__ == "__main__":
    main()
