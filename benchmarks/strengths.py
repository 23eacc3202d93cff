"""What it costs to change a vector's strength between steps: hooks by weights and by activations, and patching anew.

CPU time of LCM Sampler in 4 steps on the pocket model with its style LoRA, in one process. `a change` is a third of the
difference between four strengths and one.

python benchmarks/strengths.py .host/comfyui .host/base
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.inprocess import load_host_of_arguments  # noqa: E402

REPEATS = 9
ONE, FOUR = "", "step 1: 0.5, step 2: 0.7, step 3: 1, step 4: 0.9"


def seconds(act: Callable[[], object]) -> float:
    """Median CPU time, after a first run."""
    act()
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        act()
        times.append(time.process_time() - start)
    return statistics.median(times)


def main() -> None:
    host = load_host_of_arguments(__doc__)
    torch.set_num_threads(1)
    management = sys.modules["comfy.model_management"]
    pair_props = sys.modules["comfy.hooks"].set_conds_props
    model, clip, _ = host.run("CheckpointLoaderSimple", ckpt_name="pocket.safetensors")
    model = host.run("LCMLoRA_Loader", model=model, lora_name="pocket_lcm.safetensors")[0]
    style = host.run("LCMLoRA_LoadVector", lora_name="pocket_style.safetensors")[0]
    prompts = [host.run("CLIPTextEncode", clip=clip, text=text)[0] for text in ("cat", "")]

    def patched(strength: float):
        return host.run("LCMLoRA_ApplyVector", model=model, lora=style, strength=strength)[0]

    def sampled(batch: int, on=model, **hooks) -> float:
        """Without hooks, or with those of LoRA Vector to Hooks."""
        group = host.run("LCMLoRA_Hooks", lora=style, **hooks)[0] if hooks else None
        positive, negative = pair_props(prompts, 1.0, "default", hooks=group)
        latent = {"samples": torch.zeros(batch, 4, 8, 8)}
        given = {"positive": positive, "negative": negative, "latent": latent, "seed": 1}
        return seconds(lambda: host.run("LCMLoRA_Sampler", model=on, **given))

    def patch_anew() -> None:
        with torch.inference_mode():
            management.load_models_gpu([patched(0.8)])

    anew = seconds(patch_anew)
    print(f"patching a model anew: {anew * 1e3:.0f} ms\n")
    print("| batch | vector | one strength | four | a change, ms | of patching anew |\n|--:|---|--:|--:|--:|--:|")
    for batch in (1, 8):
        print(f"| {batch} | in the model's weights | {sampled(batch, patched(0.8)) * 1e3:.0f} | | | |")
        for place in ("weights", "activations"):
            one, four = (sampled(batch, applied_to=place, schedule=schedule) for schedule in (ONE, FOUR))
            change = (four - one) / 3
            print(
                f"| {batch} | {place} | {one * 1e3:.0f} | {four * 1e3:.0f} | {change * 1e3:.0f} | {change / anew:.0%} |"
            )


if __name__ == "__main__":
    main()
