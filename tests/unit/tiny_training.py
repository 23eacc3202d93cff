"""Networks of a few weights to train, in this process or in one of its own, for the tests of the trainer.

python tests/unit/tiny_training.py STATE STEPS DROPOUT    trains as `train` does and writes each loss, for the tests of
killed and of parallel processes
"""

import os
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[2]))

from lcm_core.distill import DistillConfig, FullWeights, distill, inject_lora  # noqa: E402
from lcm_core.guidance import guidance_embedding  # noqa: E402
from lcm_core.schedule import NoiseSchedule  # noqa: E402

SCHEDULE = NoiseSchedule.scaled_linear()
CONFIG = DistillConfig(steps=12, learning_rate=1e-2, omega=(1, 2), save_every=2)
KINDS = {
    "LoRA": CONFIG,
    "LoRA with an average": replace(CONFIG, target_decay=0.9, solver="dpm++", distance="l2"),
    "LoRA without teacher": replace(CONFIG, objective="lcf"),
    "all weights": replace(CONFIG, target_decay=0.95, warmup=3, decay_to=0.1),
    "LoRA with two averages": replace(CONFIG, target_decay=0.9, ema_decay=0.95),
    "LoRA by Prodigy": replace(CONFIG, optimizer="prodigy", learning_rate=1.0),
    "LoRA by Lion": replace(CONFIG, optimizer="lion", learning_rate=1e-3),
    "LoRA in half precision": replace(CONFIG, autocast="float16"),
}


class Tiny(nn.Module):
    """An epsilon predictor of (x, t, (bias,)) with dropout, which takes ω too."""

    def __init__(self, dropout=0.1):
        super().__init__()
        self.conv1, self.to_q = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 2)
        self.cond_proj = nn.Linear(16, 4, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, t, cond, omega):
        h = torch.tanh(self.conv1(x) + t[:, None, None, None] / 1000)
        if omega is not None:
            h = h + self.cond_proj(guidance_embedding(omega, 16).to(h.dtype))[:, :, None, None]
        return self.to_q(self.dropout(h).movedim(1, 3)).movedim(3, 1) + cond[0][:, None, None, None]


def tiny(kind="LoRA", dropout=0.1):
    """A seeded model and what of it is trained."""
    torch.manual_seed(0)
    model = Tiny(dropout).requires_grad_(False)
    torch.manual_seed(5)
    return model, FullWeights(model) if kind == "all weights" else inject_lora(model, ["to_q", "conv1"], rank=2)


def batches(step, size=4):
    generator = torch.Generator().manual_seed(step)
    z = torch.randn(size, 2, 4, 4, generator=generator)
    return z, (torch.linspace(0.1, 0.5, size),), (torch.zeros(size),)


def train(config, state=None, kind="LoRA", stop_after=None, dropout=0.1):
    """The losses, and all trained values in one vector."""
    model, weights = tiny(kind, dropout)
    steps = distill(model, weights, batches, config, schedule=SCHEDULE, state=state)
    losses = [progress.loss for progress in islice(steps, stop_after)]
    steps.close()
    return losses, torch.cat(
        [p.detach().flatten() for p in [*weights.parameters(), *(weights.target or []), *(weights.average or [])]]
    )


def main() -> None:
    state, steps, dropout = sys.argv[1:]
    accelerator = None
    if "RANK" in os.environ:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
    torch.set_num_threads(1)
    model, weights = tiny(dropout=float(dropout))
    config = replace(CONFIG, steps=int(steps))
    for progress in distill(
        model, weights, batches, config, schedule=SCHEDULE, state=Path(state), accelerator=accelerator
    ):
        print(progress.loss, flush=True)


if __name__ == "__main__":
    main()
