"""Distillation and fine-tuning of latent consistency models, step by step: `distill` yields its progress."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from ..consistency import Prediction
from ..schedule import Schedule
from ..solvers import SOLVERS
from .config import DistillConfig
from .identity import Identified, training_identity
from .losses import Cond, Draw, Model, Problem, already_consistent, distance_of
from .objectives import OBJECTIVES
from .randomness import draw_step, stream_seed
from .state import Training, load_state, save_state

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)

Batch: TypeAlias = tuple[Tensor, Cond, Cond]


@dataclass(frozen=True)
class Progress:
    """After a step: how many are done, of how many, the step's loss, and why the state could not be written, if so."""

    step: int
    steps: int
    loss: float
    state_error: str | None = None


class Trainable(Identified, Protocol):
    """What `distill` trains: a LoRAAdapter or FullWeights."""

    names: tuple[str, ...]
    average: list[Tensor] | None

    def parameters(self) -> Iterable[nn.Parameter]: ...
    def using(self, parameters: Sequence[Tensor] | None) -> AbstractContextManager[None]: ...


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
    rank, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    parameters = list(weights.parameters())
    device = parameters[0].device
    if accelerator:
        share_weights(parameters)
    average: list[Tensor] | None = None
    if config.target_decay is not None:
        average = [p.detach().clone() for p in parameters]
    weights.average = average
    optimizer = make_optimizer(config, parameters)
    scaler = torch.amp.GradScaler(device.type, enabled=config.autocast == "float16")
    losses: list[float] = []
    known = training_identity(weights, schedule, prediction, identity or {}) if state else {}
    training = Training(known, weights.names, parameters, average, optimizer, scaler, losses)
    if state is not None and state.exists():
        load_state(state, config, training)
    saved = len(losses)
    loss_of = BatchLoss(model, weights, config, schedule, prediction)

    def save() -> str | None:
        nonlocal saved
        if state is None or rank > 0 or len(losses) == saved:
            return None
        saved = len(losses)
        try:
            save_state(state, config, training)
        except OSError as error:
            log.warning("%s", error)
            return str(error)
        return None

    try:
        for step in range(len(losses), config.steps):
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(stream_seed(config.seed, step, "process", rank))
                z, cond, uncond = checked(batches(step), config, processes)
                draw = draw_step(config, z, schedule, step)
                if step == 0:
                    loss_of.warn(z, cond, draw)
                share = len(z) // processes
                loss = torch.zeros((), device=device)
                for rows in torch.arange(rank * share, (rank + 1) * share).tensor_split(config.accumulate):
                    part = slice(int(rows[0]), int(rows[-1]) + 1)
                    part_loss = loss_of(step, z[part], cut(cond, part), cut(uncond, part), draw[part])
                    part_loss = part_loss * (len(rows) / share)
                    scaler.scale(part_loss).backward()
                    loss += part_loss.detach()
            if accelerator and processes > 1:
                loss = average_gradients(accelerator, parameters, loss)
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
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
            if average is not None and config.target_decay is not None:
                with torch.no_grad():
                    torch._foreach_lerp_(average, [*parameters], 1 - config.target_decay)
            losses.append(loss.item())
            due = len(losses) % config.save_every == 0 or len(losses) == config.steps
            yield Progress(len(losses), config.steps, losses[-1], save() if due else None)
    finally:
        save()


class BatchLoss:
    """The loss of a batch, with the student, the teacher and the target that the config asks for in one model."""

    def __init__(
        self, model: Model, weights: Trainable, config: DistillConfig, schedule: Schedule, prediction: Prediction
    ):
        self.model, self.weights, self.config = model, weights, config
        self.schedule, self.prediction = schedule, prediction
        self.distance = distance_of(config.distance, config.huber_c)

    def __call__(self, step: int, z: Tensor, cond: Cond, uncond: Cond, draw: Draw) -> Tensor:
        config = self.config
        problem = Problem(
            self.student, self.teacher, self.target, z, cond, uncond, draw, self.schedule, self.prediction,
            SOLVERS[config.solver], self.distance, config.links,
        )  # fmt: skip
        if step < config.warm_start:
            return OBJECTIVES["guided"].loss(problem)
        first, *more = (
            weight * OBJECTIVES[name].loss(problem, **{key: config.resolved[key] for key in OBJECTIVES[name].options})
            for name, weight in {config.objective: 1.0, **config.terms}.items()
        )
        return sum(more, first)

    def student(self, x: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Tensor:
        dtype = getattr(torch, self.config.autocast or "float32")
        with torch.autocast(x.device.type, dtype, enabled=self.config.autocast is not None):
            t = t.to(x.device, x.dtype if t.is_floating_point() else t.dtype)
            output = self.model(x, t, cond, None if omega is None else omega.to(x.device))
        return output.to(x.dtype)

    def teacher(self, x: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Tensor:
        with self.weights.using(None):
            return self.student(x, t, cond, omega)

    def target(self, x: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Tensor:
        if self.weights.average is None:
            return self.student(x, t, cond, omega)
        with self.weights.using(self.weights.average):
            return self.student(x, t, cond, omega)

    def warn(self, z: Tensor, cond: Cond, draw: Draw) -> None:
        """Log a warning if the teacher seems to be an LCM."""
        if self.config.needs_teacher and already_consistent(
            self.teacher, z, cond, draw.noise, schedule=self.schedule, prediction=self.prediction
        ):
            log.warning("the teacher draws a picture in one step: it seems to be an LCM, or to have an LCM-LoRA on it")


def make_optimizer(config: DistillConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with betas .9 and .999; adamw8bit keeps its state in 8 bits, and is an ImportError without bitsandbytes."""
    rate, betas, decay = config.learning_rate, (0.9, 0.999), config.weight_decay
    if config.optimizer == "adamw":
        fused = parameters[0].device.type in ("cpu", "cuda")
        return torch.optim.AdamW(parameters, lr=rate, betas=betas, weight_decay=decay, fused=fused)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ImportError("optimizer adamw8bit needs bitsandbytes (pip install bitsandbytes); or use adamw") from error
    return AdamW8bit(parameters, lr=rate, betas=betas, weight_decay=decay)


def checked(batch: Batch, config: DistillConfig, processes: int) -> Batch:
    """The batch in float32 or wider, without uncond where nothing needs it.

    ValueError if it is empty, uneven or can't be shared, and without uncond where ω is not 0.
    """
    z, cond, uncond = batch
    if len(z) == 0:
        raise ValueError("the batch has no latents; give at least one for each process")
    if not config.needs_teacher:
        uncond = ()
    for c in (*cond, *uncond):
        if len(c) != len(z):
            raise ValueError(f"{len(z)} latents, but conditioning for {len(c)}; give one to each latent")
    shapes = [[tuple(c.shape[1:]) for c in each] for each in (cond, uncond)]
    axes = [[len(shape) for shape in each] for each in shapes]
    if config.needs_teacher and not uncond and config.omega != (0, 0):
        raise ValueError(
            f"omega {config.omega} guides the teacher, and there is no conditioning without prompt; give it in uncond, "
            "or set omega to (0, 0) for a teacher that needs no guidance"
        )
    if uncond and axes[0] != axes[1]:
        raise ValueError(f"conditioning of shapes {shapes[0]}, but {shapes[1]} without prompt; give both alike")
    if len(z) % processes or len(z) // processes < config.accumulate:
        raise ValueError(
            f"a batch of {len(z)} can't be shared by {processes} processes and worked through in {config.accumulate} "
            f"parts; use a multiple of {processes}, at least {processes * config.accumulate}"
        )
    return z.to(torch.promote_types(z.dtype, torch.float32)), cond, uncond


def cut(cond: Cond, rows: slice) -> Cond:
    return tuple(c[rows] for c in cond)


def share_weights(parameters: Iterable[nn.Parameter]) -> None:
    """Give every process of Accelerate the parameters of process 0."""
    from accelerate.utils import broadcast

    with torch.no_grad():
        for p in parameters:
            p.copy_(broadcast(p.detach().clone()))


def average_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
    """Replace every gradient by its mean over the processes, in one exchange; returns the mean of the losses ()."""
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = accelerator.reduce(torch.cat([*(g.flatten() for g in grads), loss.reshape(1)]), reduction="mean")
    *parts, mean = flat.split([*(g.numel() for g in grads), 1])
    for grad, part in zip(grads, parts, strict=True):
        grad.copy_(part.view_as(grad))
    return mean.reshape(())
