"""The consistency function of latent consistency models, and the sampler that walks it down a list of noise levels.

Luo et al., *Latent Consistency Models* (arXiv 2310.04378); Zheng et al., *Trajectory Consistency Distillation*
(arXiv 2402.19159) for the stochasticity γ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal, get_args, overload

import torch
from torch import Tensor

from .schedule import FlowSchedule, Schedule, expand

Prediction = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
Denoise = Callable[[Tensor, float], Tensor]
Process = Callable[[float], tuple[float, float]]
Callback = Callable[[int, float, Tensor, Tensor], object]


@overload
def boundary_scalings(t: float, *, sigma_data: float = ..., timestep_scaling: float = ...) -> tuple[float, float]: ...
@overload
def boundary_scalings(
    t: Tensor, *, sigma_data: float = ..., timestep_scaling: float = ...
) -> tuple[Tensor, Tensor]: ...
def boundary_scalings(
    t: float | Tensor, *, sigma_data: float = 0.5, timestep_scaling: float = 10.0
) -> tuple[float | Tensor, float | Tensor]:
    """(c_skip, c_out) with c_skip(0) = 1 and c_out(0) = 0, which make f_θ the identity at t = 0.

    c_skip = σ_d² / ((s·t)² + σ_d²), c_out = s·t / √((s·t)² + σ_d²); arXiv 2310.04378.
    t: timesteps, a number (floats are returned) or a tensor of any shape: in float32 or float64 it stays where it is,
    and any other is computed in float64 on the CPU.
    """
    if isinstance(t, Tensor) and t.dtype not in (torch.float32, torch.float64):
        t = t.cpu().to(torch.float64)
    scaled = (t.detach() if isinstance(t, Tensor) else t) * timestep_scaling
    total = scaled**2 + sigma_data**2
    return sigma_data**2 / total, scaled / total**0.5


def predict_x0(
    output: Tensor, x: Tensor, t: float | Tensor, schedule: Schedule, prediction: Prediction = "epsilon"
) -> Tensor:
    """The clean x̂₀ that a model's output implies, (B, …) in the dtype of x.

    ε: (x − σ·ε)/α; v: α·x − σ·v; sample: the output; flow: x − σ·v of the velocity v = ε − x₀. `t` is one timestep or
    (B,). ValueError for an ε-prediction where α = 0 (x holds no signal there), an unknown prediction, or one of a flow
    on another schedule.
    """
    _check_prediction(prediction, schedule)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if prediction == "epsilon":
        _check_divisor("alpha", alpha, t, "a zero-terminal-SNR model must predict v or the sample")
        x0 = (x - expand(sigma, x) * output) / expand(alpha, x)
    elif prediction == "v_prediction":
        x0 = expand(alpha, x) * x - expand(sigma, x) * output
    elif prediction == "flow_prediction":
        x0 = x - expand(sigma, x) * output
    else:
        x0 = output
    return x0.to(x.dtype)


def predict_noise(
    output: Tensor, x: Tensor, t: float | Tensor, schedule: Schedule, prediction: Prediction = "epsilon"
) -> Tensor:
    """The noise ε̂ that a model's output implies, (B, …) in the dtype of x.

    ε: the output; v: α·v + σ·x; sample: (x − α·x̂₀)/σ; flow: x + (1 − σ)·v. `t` is one timestep or (B,).
    ValueError for a sample prediction where σ = 0 (x holds no noise there), and as `predict_x0`.
    """
    _check_prediction(prediction, schedule)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if prediction == "epsilon":
        noise = output
    elif prediction == "v_prediction":
        noise = expand(alpha, x) * output + expand(sigma, x) * x
    elif prediction == "flow_prediction":
        noise = x + expand(alpha, x) * output
    else:
        _check_divisor("sigma", sigma, t, "leave out the timestep without noise")
        noise = (x - expand(alpha, x) * output) / expand(sigma, x)
    return noise.to(x.dtype)


def consistency_function(
    output: Tensor, x: Tensor, t: float | Tensor, schedule: Schedule, prediction: Prediction = "epsilon"
) -> Tensor:
    """f_θ(x, t) = c_skip(t)·x + c_out(t)·x̂₀ (arXiv 2310.04378), from the model's output at (x, t).

    Of a flow it is x̂₀ = x − σ·v, which is x at σ = 0 as it is: c_skip and c_out are in it (arXiv 2303.01469, eq. 5).
    `output` and `x` are (B, …), `t` one timestep or (B,); returns (B, …) in the dtype of x.
    """
    if isinstance(schedule, FlowSchedule):
        return predict_x0(output, x, t, schedule, prediction)
    c_skip, c_out = boundary_scalings(t)
    x0 = predict_x0(output, x, t, schedule, prediction)
    return (expand(c_skip, x) * x + expand(c_out, x) * x0).to(x.dtype)


def shrink_level(level: float, gamma: float) -> float:
    """(1 − γ)·level, rounded down if the level is an int: TCD's s = ⌊(1 − γ)·t_next⌋ for discrete timesteps."""
    shrunk = (1 - gamma) * level
    return math.floor(shrunk) if isinstance(level, int) else shrunk


@dataclass(frozen=True)
class Transition:
    """What follows an evaluation: the sample at the next level, made of f_θ and fresh noise.

    γ = 1 is arXiv 2310.04378's: x ← α(t')·f_θ + σ(t')·z. Below that it is arXiv 2402.19159's: a deterministic step to a
    cleaner level s ≤ t', then noise from s to t', so γ = 0 is deterministic.

    process(level) -> (α, σ) of x = α·x₀ + σ·ε. intermediate(t', γ) -> s for 0 < γ < 1.
    ValueError for a γ outside [0, 1].
    """

    process: Process
    gamma: float = 1.0
    intermediate: Callable[[float, float], float] = shrink_level

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma {self.gamma} is outside [0, 1]; 1 is LCM's multistep sampling, 0 is deterministic")

    def __call__(
        self, x: Tensor, denoised: Tensor, level: float, level_next: float, noise: Callable[[], Tensor]
    ) -> Tensor:
        """The sample at level_next, (B, …) in the dtype of x, after f_θ = `denoised` of x at `level`.

        noise() -> z; not called for γ = 0. ValueError for γ < 1 at a level without noise, or an s noisier than t'.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        x0 = denoised.to(dtype)
        alpha_next, sigma_next = self.process(level_next)
        if self.gamma == 1:
            return (alpha_next * x0 + sigma_next * noise().to(x0)).to(x.dtype)
        alpha, sigma = self.process(level)
        if sigma == 0:
            raise ValueError(f"level {level} has sigma 0, no noise to step away from; leave it out of levels")
        s = self.intermediate(level_next, self.gamma) if self.gamma > 0 else level_next
        if s > level_next:
            raise ValueError(f"intermediate gave {s} for level {level_next}, which is noisier; return that or less")
        alpha_s, sigma_s = self.process(s)
        x_s = alpha_s * x0 + sigma_s * (x.to(dtype) - alpha * x0) / sigma
        x_next = alpha_next / alpha_s * x_s
        if self.gamma > 0:
            fresh = math.sqrt(max(sigma_next**2 - (alpha_next / alpha_s * sigma_s) ** 2, 0.0))
            x_next = x_next + fresh * noise().to(x_next)
        return x_next.to(x.dtype)


def multistep_sample(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[float],
    process: Process,
    *,
    noise: Callable[[int], Tensor],
    gamma: float = 1.0,
    callback: Callback | None = None,
    intermediate: Callable[[float, float], float] = shrink_level,
    until: float | None = None,
) -> Tensor:
    """Multistep consistency sampling: denoise, add noise of the next level, repeat; returns the last f_θ.

    γ = 1 is the multistep sampling of arXiv 2310.04378, Algorithm 3: x ← f_θ(x, t), x ← α(t')·x + σ(t')·z. Below that
    it is arXiv 2402.19159's (`Transition`). The last step is f_θ itself, whatever γ; diffusers' TCDScheduler stops at
    its timestep 0 instead.

    denoise(x, level) -> f_θ, the estimate of x₀, (B, …).
    x: (B, …), noisy at levels[0].
    levels: where denoise is evaluated, descending and without a final zero. Timesteps, sigmas, whatever process and
        denoise understand. No levels: x is returned.
    process(level) -> (α, σ) of x = α·x₀ + σ·ε: NoiseSchedule.process for timesteps, (1, σ) for variance-exploding
        sigmas, (1 − σ, σ) for flow models.
    noise(i) -> the z that follows evaluation i = 0, 1, …, (B, …) on any device; not called for γ = 0.
    callback(i, level, x, f_θ) is called after evaluation i.
    intermediate(t', γ) -> s for 0 < γ < 1. Default: (1 − γ)·t', an int for an int.
    until: a level to end at with its noise on, for another call with the levels from there; x at it is returned.
    """
    step = Transition(process, gamma, intermediate)
    for i, (level, level_next) in enumerate(zip(levels, [*levels[1:], until], strict=False)):
        denoised = denoise(x, level).to(x.dtype)
        if callback is not None:
            callback(i, level, x, denoised)
        x = denoised if level_next is None else step(x, denoised, level, level_next, partial(noise, i))
    return x


def stream_sample(
    denoise: Callable[[Tensor, list[float]], Tensor],
    frames: Iterable[Tensor],
    levels: Sequence[float],
    process: Process,
    *,
    noise: Callable[[int, int], Tensor],
    gamma: float = 1.0,
    intermediate: Callable[[float, float], float] = shrink_level,
) -> Iterator[Tensor]:
    """Multistep consistency sampling of a sequence of frames, one evaluation a frame: yields each frame's f_θ in order.

    Stream batching (Kodaira et al., *StreamDiffusion*, arXiv 2312.12491): every evaluation is a batch of up to
    len(levels) successive frames, each at a level of its own, so N frames take N + len(levels) − 1 evaluations in
    place of N · len(levels). Each frame's arithmetic is that of `multistep_sample`.

    denoise(x, levels) -> f_θ for x (W, …) whose row w is noisy at levels[w]; the oldest frame comes first.
    frames: each (…), noisy at levels[0]; drawn one an evaluation, so the sequence may be endless.
    noise(frame, i) -> the z (…) that follows evaluation i of that frame.
    levels, process, gamma, intermediate: as in `multistep_sample`. No levels is a ValueError.
    """
    advance = Transition(process, gamma, intermediate)
    if len(levels) == 0:
        raise ValueError("levels is empty; give at least one level to evaluate at")
    source = enumerate(frames)
    window: list[tuple[int, int, Tensor]] = []  # frame, step, x
    while True:
        window += [(frame, 0, x) for frame, x in islice(source, 1)]
        if not window:
            return
        batch = torch.stack([x for _, _, x in window])
        denoised = denoise(batch, [levels[step] for _, step, _ in window]).to(batch.dtype)
        kept = []
        for (frame, step, x), x0 in zip(window, denoised, strict=True):
            if step + 1 == len(levels):
                yield x0
            else:
                x = advance(x, x0, levels[step], levels[step + 1], partial(noise, frame, step))
                kept.append((frame, step + 1, x))
        window = kept


def _check_prediction(prediction: str, schedule: Schedule) -> None:
    if prediction not in get_args(Prediction):
        known = ", ".join(map(repr, get_args(Prediction)))
        raise ValueError(f"prediction {prediction!r} is not known; use {known}")
    if prediction == "flow_prediction" and not isinstance(schedule, FlowSchedule):
        raise ValueError("flow_prediction is that of x = (1 − σ)·x₀ + σ·ε; give it a FlowSchedule")


def _check_divisor(name: str, value: Tensor, t: float | Tensor, remedy: str) -> None:
    if not value.all():
        raise ValueError(f"{name} is 0 at timestep {t}, and this prediction divides by it; {remedy}")
