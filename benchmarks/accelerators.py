"""Every recipe of an acceleration LoRA against its family's reference, as a table.

python benchmarks/accelerators.py [--json FILE]

For each recipe and each number of steps that it takes: the largest relative difference of our levels from the
reference's, and of our samples from the reference's, at every level and of the final x₀. A reference is the diffusers
scheduler with the settings of the family's card, for DMD2 and LTX-2 on the list that the authors publish. Both walk
down one made-up network in float64 from one noise, and draw the same noise where some enters.

TCD's γ is TCDScheduler's `eta`, for γ < 1. Its eta 1 steps to timestep 0, where a little noise is left, before it adds
fresh noise, and our γ 1 to x₀, as LCM does; its eta 1 is our γ 0.999. Its last sample is at timestep 0 as well, and is
solved for x₀. DDIMScheduler steps to t − ⌊1000/n⌋, which is not its own next timestep where n does not divide 1000;
there EulerDiscreteScheduler is the reference.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

sys.path.append(str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers import (  # noqa: E402
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)
from diffusers.utils import logging  # noqa: E402
from torch import Tensor  # noqa: E402

from lcm_core.accelerators import Recipe, levels, load_recipes  # noqa: E402
from lcm_core.consistency import consistency_function, multistep_sample  # noqa: E402
from lcm_core.schedule import Flow, NoiseSchedule  # noqa: E402

# What the scheduler_config.json of SD1.5 and SDXL says; AnimateLCM's own configuration has the linear ones.
SCALED, LINEAR = (
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": schedule} for schedule in ("scaled_linear", "linear")
)
SD = NoiseSchedule.scaled_linear()
ANIMATE = NoiseSchedule(torch.cumprod(1 - torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64), dim=0))
# What diffusers' LTX-2 and DMD2's authors give.
LTX2 = [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875]
DMD2 = [999, 749, 499, 249]
FLUX_MU = 1.15  # of 1024 x 1024 pixels
SHAPE, SEED = (2, 3, 4, 4), 7


class Walk(NamedTuple):
    """Where a model is evaluated, the sample at each level, and the final x₀."""

    levels: list[float]
    samples: list[Tensor]
    final: Tensor


def draws(seed: int = SEED) -> Callable[[], Tensor]:
    """What returns the next noise of a seed at each call."""
    return partial(torch.randn, SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(x: Tensor, share: float) -> Tensor:
    """A made-up model's output at x for a share of the noise range: smooth, and not linear in x."""
    return torch.tanh(1.3 * x + share) - 0.4 * torch.sin(x * (1 + share))


def ours(recipe: Recipe, steps: int, model: NoiseSchedule | Flow) -> Walk:
    at = levels(recipe, steps, model)
    samples: list[Tensor] = []
    noise = draws()

    def denoise(x: Tensor, level: float) -> Tensor:
        if isinstance(model, Flow):
            return x - level * network(x, level)
        return consistency_function(network(x, level / 1000), x, level, model)

    final = multistep_sample(
        denoise, draws(SEED - 1)(), at, model.process, noise=lambda i: noise(), gamma=recipe.gamma.default,
        callback=lambda i, level, x, denoised: samples.append(x),
    )  # fmt: skip
    return Walk(at, samples, final)


def walk(scheduler: Any, final: str, **options: object) -> Walk:
    """Down a variance-preserving scheduler's timesteps; `final` is its name for x₀."""
    options = {"generator": torch.Generator().manual_seed(SEED), **options}
    x, samples = draws(SEED - 1)(), []
    for t in scheduler.timesteps:
        samples.append(x)
        step = scheduler.step(network(x, t.item() / 1000), t, x, **options)
        x = step.prev_sample
    return Walk(scheduler.timesteps.tolist(), samples, getattr(step, final))


def lcm(recipe: Recipe, steps: int, betas: dict = SCALED, timesteps: list[int] | None = None) -> Walk:
    scheduler = LCMScheduler(**betas)
    scheduler.set_timesteps(None if timesteps else steps, timesteps=timesteps)
    return walk(scheduler, "denoised")


def tcd(recipe: Recipe, steps: int) -> Walk:
    scheduler = TCDScheduler(**SCALED)
    scheduler.set_timesteps(steps)
    at, samples, last = walk(scheduler, "prev_sample", eta=round(recipe.gamma.default, 2))
    product = scheduler.alphas_cumprod[0].double()
    noise = network(samples[-1], at[-1] / 1000)
    return Walk(at, samples, (last - (1 - product).sqrt() * noise) / product.sqrt())


def ddim(recipe: Recipe, steps: int) -> Walk:
    if 1000 % steps:
        return euler(recipe, steps)
    scheduler = DDIMScheduler(**SCALED, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(steps)
    return walk(scheduler, "pred_original_sample")


def euler(recipe: Recipe, steps: int) -> Walk:
    """EulerDiscreteScheduler's samples are x/α; they are brought back to x."""
    scheduler = EulerDiscreteScheduler(**SCALED, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    alphas = (scheduler.sigmas.double() ** 2 + 1).rsqrt()
    x, samples = draws(SEED - 1)() / alphas[0], []
    for alpha, t in zip(alphas, scheduler.timesteps, strict=False):
        samples.append(x * alpha)
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t.item() / 1000), t, x).prev_sample
    return Walk(scheduler.timesteps.tolist(), samples, x)


def flow_match(
    recipe: Recipe, steps: int, sigmas: Sequence[float] | None = None, mu: float | None = None, **config: object
) -> Walk:
    """FlowMatchEulerDiscreteScheduler on linspace(1, 1/n, n), as the pipelines call it, or on a published list."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=mu is not None, **config)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps) if sigmas is None else sigmas, mu=mu)
    noise, x, samples, at = draws(), draws(SEED - 1)(), [], scheduler.sigmas[:-1].tolist()
    # Its arithmetic is float32, and a generator's float32 noise is not its float64 noise.
    with patch(f"{FlowMatchEulerDiscreteScheduler.__module__}.randn_tensor", lambda *_, dtype, **__: noise().to(dtype)):
        for t, sigma in zip(scheduler.timesteps, at, strict=True):
            samples.append(x)
            x = scheduler.step(network(x, sigma), t, x).prev_sample
    return Walk(at, samples, x)


FLUX = (partial(flow_match, mu=FLUX_MU), Flow(float(np.exp(FLUX_MU))), "FlowMatchEuler, mu 1.15")
WAN22 = (partial(flow_match, shift=5.0), Flow(5), "FlowMatchEuler, shift 5")
# Recipe -> its reference, the model that ours runs on, and what the reference is called.
REFERENCES: dict[str, tuple[Callable[[Recipe, int], Walk], NoiseSchedule | Flow, str]] = {
    "lcm-lora": (lcm, SD, "LCMScheduler"),
    "animatelcm": (partial(lcm, betas=LINEAR), ANIMATE, "LCMScheduler, linear betas"),
    "tcd": (tcd, SD, "TCDScheduler, eta 0.3"),
    "hyper-sd": (ddim, SD, "DDIMScheduler, trailing"),
    "hyper-sd-1step": (tcd, SD, "TCDScheduler, eta 1"),
    "hyper-sd-cfg": (ddim, SD, "DDIMScheduler or EulerDiscrete, trailing"),
    "hyper-flux": FLUX,
    "sdxl-lightning": (euler, SD, "EulerDiscrete, trailing"),
    "dmd2": (partial(lcm, timesteps=DMD2), SD, "LCMScheduler, own timesteps"),
    "flash": (lcm, SD, "LCMScheduler"),
    "pcm-smallcfg": (ddim, SD, "DDIMScheduler or EulerDiscrete, trailing"),
    "pcm-normalcfg-4": (ddim, SD, "DDIMScheduler, trailing"),
    "pcm-normalcfg-8": (ddim, SD, "DDIMScheduler, trailing"),
    "pcm-normalcfg-16": (ddim, SD, "DDIMScheduler or EulerDiscrete, trailing"),
    "pcm-lcmlike": (lcm, SD, "LCMScheduler"),
    "sdxl-turbo": (lcm, SD, "LCMScheduler"),
    "flux-turbo-alpha": FLUX,
    "qwen-lightning": (partial(flow_match, mu=float(np.log(3))), Flow(3), "FlowMatchEuler, mu log 3"),
    "wan21-lightx2v": (
        partial(flow_match, shift=5.0, stochastic_sampling=True), Flow(5), "FlowMatchEuler, shift 5, stochastic",
    ),
    "wan22-lightning-high": WAN22,
    "wan22-lightning-low": WAN22,
    "ltx2-distilled": (partial(flow_match, sigmas=LTX2), Flow(), "FlowMatchEuler, own sigmas"),
}  # fmt: skip


def differences(recipe: Recipe, steps: int) -> tuple[float, float]:
    """Largest relative difference of the levels, and of the samples and x₀, from the recipe's reference."""
    reference, model, _ = REFERENCES[recipe.name]
    mine, theirs = ours(recipe, steps, model), reference(recipe, steps)
    of_levels = relative(*(torch.tensor(side.levels, dtype=torch.float64) for side in (mine, theirs)))
    pairs = zip([*mine.samples, mine.final], [*theirs.samples, theirs.final], strict=True)
    return of_levels, max(relative(a, b) for a, b in pairs)


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    logging.set_verbosity_error()
    rows = []
    print(f"{'recipe':22} {'steps':>5}  {'levels':>8}  {'samples':>8}  reference")
    for name, recipe in load_recipes()[0].items():
        for steps in recipe.steps:
            of_levels, of_samples = differences(recipe, steps)
            rows.append({"recipe": name, "steps": steps, "levels": of_levels, "samples": of_samples})
            print(f"{name:22} {steps:5}  {of_levels:8.1e}  {of_samples:8.1e}  {REFERENCES[name][2]}")
    worst = {key: max(row[key] for row in rows) for key in ("levels", "samples")}
    print(f"{'largest':22} {'':5}  {worst['levels']:8.1e}  {worst['samples']:8.1e}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
