"""The models that the LCM paper compares, made from the pocket teacher; benchmarks/paper.py shows what they do.

`python benchmarks/paper_models.py` trains each of them once, on the GPU if there is one, and goes on where it was
stopped; on CPUs `torchrun --nproc-per-node 2 benchmarks/paper_models.py` shares the batches between two processes.

- guided distillation (arXiv 2210.03142): the teacher's guided prediction into one network that takes ω, then
  progressive distillation (arXiv 2202.00512), which halves the steps of DDIM from 16 to 1, a network a number of steps;
- full LCM: all weights and a `cond_proj` that takes the guidance ω, by LCD (arXiv 2310.04378, Algorithm 1), from the
  network of guided distillation's first stage, which has learnt ω; and one from the teacher's weights alone;
- LCF (arXiv 2310.04378, Algorithm 4): the LCM-LoRA's model fine-tuned on the paper-cut pictures, without a teacher.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from few_step_quality import merged  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lcm_core.consistency import predict_noise, predict_x0  # noqa: E402
from lcm_core.distill import DistillConfig, FullWeights, distill, inject_lora  # noqa: E402
from lcm_core.distill.batch_loss import Trainable  # noqa: E402
from lcm_core.distill.losses import Batch, noised  # noqa: E402
from lcm_core.guidance import guidance_embedding, guided  # noqa: E402
from lcm_core.lora import LoRAVector  # noqa: E402
from lcm_core.schedule import expand, trailing_timesteps  # noqa: E402
from pocket import lcm  # noqa: E402
from pocket.data import WORDS, pictures  # noqa: E402
from pocket.teacher import SCHEDULE, Captions, encode_pictures, load_teacher  # noqa: E402
from pocket.training import DEVICE, processes, train  # noqa: E402
from pocket.unet import HOST_WIDTH, PocketUNet  # noqa: E402

BATCH, FULL_STEPS = 128, 3000
OMEGA = (0.0, 3.0)  # guidance scales 1 to 4
STAGES = (16, 8, 4, 2, 1)  # of progressive distillation
Sample = Callable[[torch.Generator, int], tuple[Tensor, tuple[Tensor, ...]]]


class GuidedUNet(nn.Module):
    """The pocket UNet with ω (B,) as an input; without ω it is the teacher, and so it is before training."""

    def __init__(self, unet: PocketUNet):
        super().__init__()
        self.unet = unet
        self.cond_proj = nn.Linear(256, HOST_WIDTH, bias=False)
        nn.init.zeros_(self.cond_proj.weight)

    def forward(self, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], omega: Tensor | None = None) -> Tensor:
        return self.unet(x, t, *cond, None if omega is None else self.cond_proj(guidance_embedding(omega).to(x.device)))


@cache
def examples(style: str, folder: Path) -> Sample:
    """Latents and the context of a caption, drawn from the pictures of a style: sample(generator, count)."""
    data = pictures(style, folder, device=DEVICE)
    latents, (_, words) = encode_pictures(data), load_teacher(device=DEVICE)
    captions = Captions(words)

    def sample(generator: torch.Generator, count: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        rows = torch.randint(len(latents), (count,), generator=generator, device=DEVICE)
        return latents[rows], words(captions.draw(data, rows, generator))

    return sample


def without_prompt(count: int) -> tuple[Tensor, ...]:
    return load_teacher(device=DEVICE)[1](torch.full((count, 2), len(WORDS), device=DEVICE))


def consistency(name: str, model: Callable, weights: Trainable, config: DistillConfig, style: str, folder: Path):
    """Run `distill` on the pictures of a style."""
    from accelerate import Accelerator

    sample, uncond = examples(style, folder), without_prompt(BATCH)

    def batches(step: int) -> Batch:
        return *sample(torch.Generator(DEVICE).manual_seed(8_000_000 + step * 64), BATCH), uncond

    state, accelerator = folder / f"paper_{name}_state.safetensors", Accelerator(cpu=DEVICE.type == "cpu")
    steps = distill(
        model, weights, batches, config, schedule=SCHEDULE, state=state, identity={"style": style},
        accelerator=accelerator,
    )  # fmt: skip
    for _ in tqdm(steps, desc=name, total=config.steps, mininterval=10, disable=not accelerator.is_main_process):
        pass


def train_full_lcm(folder: Path, steps: int, start: str | None) -> dict[str, Tensor]:
    """Weights of a GuidedUNet, trained from those of `paper_<start>.safetensors` or from the teacher's."""
    net = GuidedUNet(load_teacher(device=DEVICE)[0]).to(DEVICE)
    weights = FullWeights(net)
    if start is not None:
        net.load_state_dict(load_file(folder / f"paper_{start}.safetensors"))
    config = DistillConfig(
        steps=steps, learning_rate=2e-4, links=20, on_grid=False, omega=OMEGA, target_decay=0.95, warmup=50,
        decay_to=0.05, save_every=1000, autocast="bfloat16" if DEVICE.type == "cuda" else None,
    )  # fmt: skip
    consistency("full_lcm" if start else "full_lcm_cold", net, weights, config, "colour", folder)
    return weights.weights()


def train_fine_tuning(folder: Path, steps: int) -> dict[str, Tensor]:
    """Factors of a LoRA on the model with the LCM-LoRA."""
    unet = merged(load_teacher(device=DEVICE)[0], LoRAVector.load(lcm.WEIGHTS))
    adapter = inject_lora(unet, lcm.TARGETS, 16, clamp=True)
    config = DistillConfig(
        steps=steps, learning_rate=5e-4, objective="lcf", links=20, on_grid=False, target_decay=0.95, warmup=50,
        decay_to=0.05, save_every=1000, autocast="bfloat16" if DEVICE.type == "cuda" else None,
    )  # fmt: skip

    def model(x: Tensor, t: Tensor, cond: tuple[Tensor, ...], omega: Tensor | None) -> Tensor:
        return unet(x, t, *cond)

    consistency("fine_tuning", model, adapter, config, "paper", folder)
    return adapter.vector().state_dict()


def x0_loss(x0: Tensor, goal: Tensor, t: Tensor) -> Tensor:
    """Squared error of x̂₀ at the weight max(SNR, 1) of arXiv 2202.00512, eq. 9."""
    snr = (SCHEDULE.alpha(t) / SCHEDULE.sigma(t)).square()
    return ((x0 - goal).square() * expand(snr.clamp(min=1), x0)).mean()


def draw_omega(count: int, generator: torch.Generator) -> Tensor:
    return OMEGA[0] + (OMEGA[1] - OMEGA[0]) * torch.rand(count, generator=generator, device=DEVICE)


def train_guided(folder: Path, steps: int) -> dict[str, Tensor]:
    """Stage one of guided distillation: the weights of a GuidedUNet that predicts what the guided teacher does."""
    teacher, _ = load_teacher(device=DEVICE)
    net = GuidedUNet(copy.deepcopy(teacher)).to(DEVICE).requires_grad_(True)
    sample = examples("colour", folder)
    count = BATCH // processes()[1]
    uncond = without_prompt(count)

    def loss_of(generator: torch.Generator) -> Tensor:
        z, cond = sample(generator, count)
        t = torch.randint(SCHEDULE.steps, (count,), generator=generator, device=DEVICE)
        omega = draw_omega(count, generator)
        x = noised(z, torch.randn(z.shape, generator=generator, device=DEVICE), t, SCHEDULE)
        with torch.no_grad():
            both = [torch.cat(pair) for pair in zip(cond, uncond, strict=True)]
            noise = guided(*teacher(torch.cat([x, x]), torch.cat([t, t]), *both).chunk(2), 1 + omega)
        x0, goal = (predict_x0(output, x, t, SCHEDULE) for output in (net(x, t, cond, omega), noise))
        return x0_loss(x0, goal, t)

    train("guided", {"net": net}, loss_of, steps=steps, lr=3e-4, state=folder / "paper_guided.pt", seed=5)
    return net.state_dict()


def train_halved(folder: Path, steps: int, count: int) -> dict[str, Tensor]:
    """Stage two, from 2·count steps of DDIM to count: arXiv 2202.00512, Algorithm 2."""
    before = folder / ("paper_guided.safetensors" if count == STAGES[0] else f"paper_guided_{2 * count}.safetensors")
    teacher = load_guided(before)
    net = copy.deepcopy(teacher).requires_grad_(True)
    sample = examples("colour", folder)
    share = BATCH // processes()[1]
    timesteps = torch.tensor(trailing_timesteps(2 * count))
    alpha, sigma = (torch.cat([v, end]) for v, end in zip(
        (SCHEDULE.alpha(timesteps), SCHEDULE.sigma(timesteps)), torch.eye(2, dtype=torch.float64)[:, :1], strict=True
    ))  # fmt: skip

    def at(table: Tensor, i: Tensor, x: Tensor) -> Tensor:
        return expand(table[i], x)

    def loss_of(generator: torch.Generator) -> Tensor:
        z, cond = sample(generator, share)
        i = 2 * torch.randint(count, (len(z),), generator=generator, device=DEVICE).cpu()
        omega = draw_omega(len(z), generator)
        x = noised(z, torch.randn(z.shape, generator=generator, device=DEVICE), timesteps[i], SCHEDULE)
        with torch.no_grad():
            goal = x
            for j in (i, i + 1):
                x0 = predict_x0(teacher(goal, timesteps[j].to(DEVICE), cond, omega), goal, timesteps[j], SCHEDULE)
                noise = predict_noise(x0, goal, timesteps[j], SCHEDULE, "sample")
                goal = at(alpha, j + 1, x) * x0 + at(sigma, j + 1, x) * noise
            ratio = at(sigma, i + 2, x) / at(sigma, i, x)
            goal = (goal - ratio * x) / (at(alpha, i + 2, x) - ratio * at(alpha, i, x))
        output = net(x, timesteps[i].to(DEVICE), cond, omega)
        return x0_loss(predict_x0(output, x, timesteps[i], SCHEDULE), goal, timesteps[i])

    name = f"guided_{count}"
    train(name, {"net": net}, loss_of, steps=steps, lr=2e-4, state=folder / f"paper_{name}.pt", seed=6 + count)
    return net.state_dict()


def load_guided(path: Path) -> GuidedUNet:
    net = GuidedUNet(load_teacher()[0])
    net.load_state_dict(load_file(path))
    return net.to(DEVICE).requires_grad_(False)


# name → (training, steps), as many as the pocket LCM-LoRA and style had; `paper_<name>.safetensors` is what it leaves.
RECIPES: dict[str, tuple[Callable[[Path, int], dict[str, Tensor]], int]] = {
    "fine_tuning": (train_fine_tuning, 2500),
    "guided": (train_guided, 1000),
    "full_lcm": (partial(train_full_lcm, start="guided"), FULL_STEPS),
    "full_lcm_cold": (partial(train_full_lcm, start=None), FULL_STEPS),
    **{f"guided_{count}": (partial(train_halved, count=count), 600) for count in STAGES},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=RECIPES)
    parser.add_argument("--steps", type=int, help="in place of a training's own number, to try it")
    args = parser.parse_args()
    rank, _ = processes()
    for name in args.only:
        path = args.cache / f"paper_{name}.safetensors"
        if path.exists():
            continue
        torch.manual_seed(0)
        train_it, steps = RECIPES[name]
        weights = train_it(args.cache, args.steps or steps)
        if rank == 0:
            save_file({key: value.contiguous().cpu() for key, value in weights.items()}, path)


if __name__ == "__main__":
    main()
