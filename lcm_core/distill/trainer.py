"""Distillation and fine-tuning of latent consistency models, step by step: `distill` yields its progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..consistency import Prediction
from ..schedule import Schedule
from .batch_loss import BatchLoss, Trainable, checked, cut
from .config import DistillConfig
from .identity import training_identity
from .losses import Batch, Model
from .optimizers import make_optimizer
from .processes import Processes
from .randomness import draw_step
from .state import StateFile, Training

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Progress:
    """After a step: how many are done, of how many, the step's loss, and why the state could not be written, if so."""

    step: int
    steps: int
    loss: float
    state_error: str | None = None


def distill(
    model: Model,
    weights: Trainable,
    batches: Callable[[int], Batch],
    config: DistillConfig,
    *,
    schedule: Schedule,
    prediction: Prediction = "epsilon",
    state: Path | None = None,
    identity: Mapping[str, str] | None = None,
    accelerator: Accelerator | None = None,
) -> Iterator[Progress]:
    """Train `weights` of `model` by an objective; a Progress after every step. Stop iterating to stop the training.

    model(x, t, cond, omega), see `losses`, is the network with the adapter on it or the weights in it. batches(step)
    gives the step's (z, cond, uncond): latents (B, …) and tuples of tensors (B, ...); uncond may be () where the
    objective asks no teacher, and for a teacher that is not guided, with omega (0, 0). With a FlowSchedule the
    prediction is "flow_prediction" and the timesteps are σ.
    What was learned is in `weights` at every moment (`LoRAAdapter.vector`, `FullWeights.weights`).

    state: a .safetensors file. Everything needed to go on is saved there every `save_every` steps, at the end and when
        the training is left, by an error too; a later call goes on from it. All that is random in a step depends on
        (seed, step), so the losses are those of an uninterrupted run, bit for bit, on the same machine. A state goes on
        with its own settings, network, schedule and `identity` alone. What may change is in `identity.MAY_CHANGE`:
        save_every; learning_rate, for the steps that are left; and steps, upwards, unless the rate decays. A state that
        can't be written is a warning and `Progress.state_error`, and the training goes on.
    identity: what else decides a step and only the caller knows, such as `Examples.identity`: names and short texts or
        digests. Without it another `batches` goes unnoticed on resuming.
    accelerator: Hugging Face Accelerate's, in each process that `accelerate launch` (or `torchrun`) starts. A batch is
        the batch of all processes: each takes its share of the rows, and gradients are averaged. Process 0 writes the
        state, and every process must see it.

    Logs a warning for a teacher that seems to be an LCM. FloatingPointError where loss or gradients are not finite:
    the step is not made. ValueError for a batch or a state that does not fit or is damaged, ImportError for an
    optimizer whose package is missing.
    """
    if state is not None and (state.suffix != ".safetensors" or not state.parent.is_dir()):
        raise ValueError(f"state {state} must be a .safetensors file in a folder that exists")
    processes, parameters = Processes(accelerator), list(weights.parameters())
    device = parameters[0].device
    processes.share(parameters)
    target, ema = (
        None if decay is None else [p.detach().clone() for p in parameters]
        for decay in (config.target_decay, config.ema_decay)
    )
    weights.target, weights.average = target, target if ema is None else ema
    training = Training(
        training_identity(weights, schedule, prediction, identity or {}) if state else {}, weights.names, parameters,
        target, ema, make_optimizer(config, parameters),
        torch.amp.GradScaler(device.type, enabled=config.autocast == "float16"), [],
    )  # fmt: skip
    kept = StateFile(state, config, training, writes=processes.rank == 0)
    loss_of = BatchLoss(model, weights, config, schedule, prediction)
    try:
        for step in range(len(training.losses), config.steps):
            with processes.seeded(config.seed, step, device):
                z, cond, uncond = checked(batches(step), config, processes.count)
                draw = draw_step(config, z, schedule, step)
                if step == 0:
                    loss_of.warn(z, cond, draw)
                loss = torch.zeros((), device=device)
                for rows, share in processes.parts(len(z), config.accumulate):
                    part = share * loss_of(step, z[rows], cut(cond, rows), cut(uncond, rows), draw[rows])
                    training.scaler.scale(part).backward()
                    loss += part.detach()
            loss = processes.average(parameters, loss)
            update(training, config, loss)
            yield Progress(step + 1, config.steps, training.losses[-1], kept.save_if_due())
    finally:
        kept.save()


def update(training: Training, config: DistillConfig, loss: Tensor) -> None:
    """The step that the gradients ask for, at its learning rate; then the averages follow.

    FloatingPointError, and no step, where the loss or the gradients are not finite.
    """
    step, optimizer, scaler = len(training.losses), training.optimizer, training.scaler
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(training.parameters, config.max_grad_norm)
    if not (loss.isfinite() and (norm.isfinite() or scaler.is_enabled())):
        raise FloatingPointError(
            f"the loss is {loss.item():g} and its gradient's norm {norm.item():g} at step {step + 1}, which is "
            f"not made: the weights are those after step {step}, and so is the state if one is kept; "
            f"lower learning_rate {config.learning_rate:g}, or check the latents and the model's dtype"
        )
    for group in optimizer.param_groups:
        group["lr"] = config.rate(step)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for average, decay in ((training.target, config.target_decay), (training.ema, config.ema(step))):
            if average is not None and decay is not None:
                torch._foreach_lerp_(average, [*training.parameters], 1 - decay)
    training.losses.append(loss.item())
