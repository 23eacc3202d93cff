"""How well inpainting joins at the mask's edge on the pocket model: LCM Sampler against core's `lcm` sampler.

python benchmarks/inpainting_seam.py COMFYUI BASE [--seeds 64] [--picture FILE]

COMFYUI and BASE are .host/comfyui and .host/base after `python tools/run.py demo`, or your own. Pictures of a category
are made, their left half is masked and made anew, 4 steps at cfg 1, with one LoRA. For each sampler, over the seeds:

- seam: the mean step between the pixel columns on either side of the edge, over the mean step between columns near it;
  the originals' own says what no seam is;
- background: the difference between the colours of the two halves' border pixels, in 8-bit levels;
- kept: the largest change of the latent outside the mask.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402
from torch import Tensor  # noqa: E402

from tools.inprocess import Host, load_host  # noqa: E402

SIZE = 128  # pixels
EDGE = 64  # the first pixel column outside the mask


def seam(pictures: Tensor) -> float:
    """Mean over (B, H, W, 3) of the step across EDGE over the steps 8 … 24 columns beside it."""
    steps = (pictures[:, :, 1:] - pictures[:, :, :-1]).abs().mean((0, 1, 3))
    beside = torch.cat([steps[EDGE - 25 : EDGE - 8], steps[EDGE + 8 : EDGE + 25]]).mean()
    return (steps[EDGE - 1] / beside).item()


def background(pictures: Tensor) -> float:
    """Mean difference of the colours along the top and bottom rows, left against right, in 8-bit levels."""
    rows = pictures[:, [0, 1, SIZE - 2, SIZE - 1]]
    return 255 * (rows[:, :, :EDGE].mean((1, 2)) - rows[:, :, EDGE:].mean((1, 2))).abs().mean().item()


def inpainted(host: Host, seeds: int) -> tuple[Tensor, dict[str, tuple[Tensor, float]]]:
    """(the originals, {sampler: (pictures, largest change outside)}), pictures (seeds, 128, 128, 3) in [0, 1]."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    model, clip, vae = host.run("CheckpointLoaderSimple", ckpt_name="pocket.safetensors")
    positive, negative = (host.run("CLIPTextEncode", clip=clip, text=text)[0] for text in ("animal", ""))
    (ours, *_) = host.run("LCMLoRA_Loader", model=model, lora_name="pocket_lcm.safetensors")
    (core,) = host.run("LoraLoaderModelOnly", model=model, lora_name="pocket_lcm.safetensors", strength_model=1.0)
    (core,) = host.run(ModelSamplingDiscrete, model=core, sampling="lcm", zsnr=False)
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, :, :EDGE] = 1
    prompts = {"positive": positive, "negative": negative, "cfg": 1.0, "steps": 4}

    def made(latent: dict, seed: int) -> Tensor:
        return host.run("LCMLoRA_Sampler", model=ours, latent=latent, seed=seed, **prompts)[0]["samples"]

    def by_core(latent: dict, seed: int) -> Tensor:
        return host.run(
            "KSampler", model=core, latent_image=latent, seed=seed, sampler_name="lcm", scheduler="simple",
            denoise=1.0, **prompts,
        )[0]["samples"]  # fmt: skip

    def decoded(latents: list[Tensor]) -> Tensor:
        return host.run("VAEDecode", samples={"samples": torch.cat(latents)}, vae=vae)[0]

    originals = [made({"samples": torch.zeros(1, 4, SIZE // 8, SIZE // 8)}, seed) for seed in range(seeds)]
    results = {}
    for name, sample in {"LCM Sampler": made, "core lcm": by_core}.items():
        latents = [sample({"samples": z, "noise_mask": mask}, 1000 + seed) for seed, z in enumerate(originals)]
        changes = [(a - b)[..., EDGE // 8 :].abs().max() for a, b in zip(latents, originals, strict=True)]
        results[name] = decoded(latents), torch.stack(changes).max().item()
    return decoded(originals), results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--picture", type=Path, default=None, help="draw originals and each sampler's here")
    args = parser.parse_args()
    originals, results = inpainted(load_host(args.comfyui, args.base), args.seeds)
    print(f"{'':12} {'seam':>6} {'background':>11} {'kept':>9}")
    print(f"{'originals':12} {seam(originals):6.2f} {background(originals):11.1f}")
    for name, (pictures, change) in results.items():
        print(f"{name:12} {seam(pictures):6.2f} {background(pictures):11.1f} {change:9.2g}")
    if args.picture:
        made_anew = {name: pictures for name, (pictures, _) in results.items()}
        draw_picture(args.picture, {"original": originals} | made_anew)


def draw_picture(path: Path, rows: dict[str, Tensor], columns: int = 6) -> None:
    """The first pictures of each row, its name at the left, and above the side that is made anew."""
    left, top, gap = 130, 34, 6
    sheet = Image.new("RGB", (left + columns * (SIZE + gap), top + len(rows) * (SIZE + gap)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for x in range(columns):
        start = left + x * (SIZE + gap)
        draw.line([(start, top - 6), (start + EDGE, top - 6)], "#c02c2c", 3)
        draw.text((start, top - 28), "made anew", "#c02c2c", font)
    for y, (name, pictures) in enumerate(rows.items()):
        draw.text((10, top + y * (SIZE + gap) + SIZE // 2), name, "black", font, anchor="lm")
        for x, picture in enumerate(pictures[:columns]):
            image = Image.fromarray((picture * 255).round().to(torch.uint8).numpy())
            sheet.paste(image, (left + x * (SIZE + gap), top + y * (SIZE + gap)))
    sheet.save(path, quality=92)


if __name__ == "__main__":
    main()
