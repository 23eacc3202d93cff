"""The pocket style LoRA: fine-tunes the teacher on the line drawings, through the same LoRA adapter.

`torchrun --nproc-per-node 2 -m pocket.style` trains it.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from lcm_core.distill import inject_lora

from .data import pictures
from .lcm import TARGETS
from .teacher import Captions, encode_pictures, epsilon_loss, load_teacher
from .training import join_processes, train

WEIGHTS = Path(__file__).parent / "weights" / "style_lora.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    rank, processes = join_processes()
    torch.manual_seed(0)

    data = pictures("line", args.cache)
    latents = encode_pictures(data)
    unet, words = load_teacher()
    captions = Captions(words)
    adapter = inject_lora(unet, TARGETS, rank=32, clamp=True)

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (32 // processes,), generator=generator)
        return epsilon_loss(unet, latents[rows], *words(captions.draw(data, rows, generator)), generator)

    train("style LoRA", {"adapter": adapter}, loss_of, steps=args.steps, lr=1e-3,
          state=args.cache / "style_lora.pt", seed=2)  # fmt: skip
    if rank == 0:
        adapter.vector().save(args.out, dtype=torch.float16)


if __name__ == "__main__":
    main()
