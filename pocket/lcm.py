"""The pocket LCM-LoRA: latent consistency distillation (LCD) of the teacher by `lcm_core.distill`.

`python -m pocket.lcm` trains it. Links are longer than the paper's (20 of 50 timesteps in place of 50 of 20) and start
at every timestep, which a short training on a small model learns faster. The guidance ω is low: this teacher is at its
best between guidance scales 2 and 4.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lcm_core.distill import DistillConfig, distill, inject_lora
from lcm_core.distill.identity import fingerprint
from lcm_core.distill.losses import Batch

from .data import WORDS, pictures
from .teacher import SCHEDULE, Captions, encode_pictures, load_teacher
from .training import DEVICE, processes

WEIGHTS = Path(__file__).parent / "weights" / "lcm_lora.safetensors"
BATCH, STEPS, RANK, OMEGA = 192, 1600, 32, (1.0, 2.0)
# Every linear layer and convolution of the UNet, by its SD (LDM) name.
TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "in_layers.2",
    "out_layers.3", "emb_layers.1", "skip_connection", "op", "conv", "input_blocks.0.0", "out.2", "time_embed.0",
    "time_embed.2",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    from accelerate import Accelerator

    rank, _ = processes()
    torch.manual_seed(0)

    data = pictures("colour", args.cache, device=DEVICE)
    latents = encode_pictures(data)
    unet, words = load_teacher(device=DEVICE)
    captions = Captions(words)
    adapter = inject_lora(unet, TARGETS, RANK, clamp=True)
    config = DistillConfig(
        steps=args.steps, learning_rate=7e-4, links=20, on_grid=False, omega=OMEGA, target_decay=0.95,
        warmup=50, decay_to=0.05, save_every=500, autocast="bfloat16" if DEVICE.type == "cuda" else None,
    )  # fmt: skip

    def model(x: Tensor, t: Tensor, cond: tuple[Tensor, ...], omega: Tensor | None) -> Tensor:
        return unet(x, t, *cond)

    uncond = words(torch.full((BATCH, 2), len(WORDS), device=DEVICE))

    def batches(step: int) -> Batch:
        generator = torch.Generator(DEVICE).manual_seed(7_000_000 + step * 64)
        rows = torch.randint(len(latents), (BATCH,), generator=generator, device=DEVICE)
        return latents[rows], words(captions.draw(data, rows, generator)), uncond

    state = args.cache / "lcm_lora.safetensors"
    steps = distill(
        model, adapter, batches, config, schedule=SCHEDULE, state=state,
        identity={"latents": fingerprint({"latents": latents})}, accelerator=Accelerator(cpu=DEVICE.type == "cpu"),
    )  # fmt: skip
    bar = tqdm(steps, desc="LCM-LoRA", total=args.steps, mininterval=10, disable=rank > 0)
    loss = None
    for progress in bar:
        loss = progress.loss if loss is None else 0.98 * loss + 0.02 * progress.loss
        bar.set_postfix(loss=f"{loss:.5f}", refresh=False)
    if rank == 0:
        adapter.vector().save(args.out, dtype=torch.float16)


if __name__ == "__main__":
    main()
