"""Noise schedules of latent diffusion, and the timestep grids that few-step samplers walk.

The forward process of a variance-preserving model is x = α(t)·x₀ + σ(t)·ε with α = √ᾱ_t, σ = √(1 − ᾱ_t).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The cumulative products ᾱ_t of a variance-preserving diffusion, for timesteps t = 0 … T − 1.

    `alphas_cumprod` is a (T,) tensor that never increases, with values in [0, 1]; it is kept in float64 on the CPU.
    Timesteps may be Python numbers or tensors of any shape. Fractional ones interpolate log(σ/α) linearly, and beside
    pure noise or a clean image, where that is infinite, the angle arctan(σ/α): both keep α² + σ² = 1 and are monotone
    and continuous. A timestep outside 0 … T − 1 is a ValueError.
    """

    alphas_cumprod: Tensor

    def __post_init__(self) -> None:
        table = torch.as_tensor(self.alphas_cumprod).detach().cpu().to(torch.float64)
        if table.ndim != 1 or table.numel() == 0:
            raise ValueError(f"alphas_cumprod has shape {tuple(table.shape)}; give one value per timestep, shape (T,)")
        if not (((table >= 0) & (table <= 1)).all() and (table.diff() <= 0).all()):
            raise ValueError(
                f"alphas_cumprod runs from {table[0].item():g} to {table[-1].item():g} and is not a non-increasing "
                "sequence in [0, 1]; give the cumulative product of 1 - beta, from the first timestep to the last"
            )
        object.__setattr__(self, "alphas_cumprod", table)

    @classmethod
    def scaled_linear(cls, beta_start: float = 0.00085, beta_end: float = 0.012, steps: int = 1000) -> NoiseSchedule:
        """Stable Diffusion's schedule: √β_t is linear from √beta_start to √beta_end over `steps` timesteps."""
        check_count("steps", steps)
        if not 0 <= beta_start <= beta_end < 1:
            raise ValueError(f"betas {beta_start}, {beta_end} must be 0 <= start <= end < 1; SD has 0.00085, 0.012")
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2
        return cls(torch.cumprod(1 - betas, dim=0))

    def zero_terminal_snr(self) -> NoiseSchedule:
        """A new schedule whose last timestep is pure noise, ᾱ_{T−1} = 0, and whose first is as before.

        Lin et al., *Common Diffusion Noise Schedules and Sample Steps are Flawed* (arXiv 2305.08891), Algorithm 1.
        """
        alpha = self.alphas_cumprod.sqrt()
        first, last = alpha[0], alpha[-1]
        if first == last:
            raise ValueError(f"alpha is {first.item():g} at every one of {self.steps} timesteps; it must decrease")
        return NoiseSchedule(((alpha - last) * first / (first - last)) ** 2)

    @property
    def steps(self) -> int:
        """T, the number of training timesteps."""
        return self.alphas_cumprod.numel()

    def alpha(self, t: float | Tensor) -> Tensor:
        """α(t) = √ᾱ_t, float64 on the CPU, in the shape of t."""
        return self._at(t).sqrt()

    def sigma(self, t: float | Tensor) -> Tensor:
        """σ(t) = √(1 − ᾱ_t), float64 on the CPU, in the shape of t."""
        return (1 - self._at(t)).sqrt()

    def process(self, t: float) -> tuple[float, float]:
        """(α(t), σ(t)) as floats: the forward process over timesteps, as `multistep_sample` wants it."""
        return self.alpha(t).item(), self.sigma(t).item()

    def share(self, t: Tensor) -> Tensor:
        """The share (t + 1)/T of the range that a timestep ends, float64 on the CPU."""
        return (t.cpu().to(torch.float64) + 1) / self.steps

    def level(self, share: Tensor) -> Tensor:
        """The last timestep that ends within a share of the range, int64: T − 1 for 1, and 0 for less than 1/T."""
        return (share * self.steps + 1e-6).floor().long().sub(1).clamp(min=0)

    def time(self, t: Tensor) -> Tensor:
        """σ(t)/α(t), float64: the time of x/α = x₀ + time·ε (arXiv 2206.00364), infinite where α is 0."""
        return self.sigma(t) / self.alpha(t)

    def at(self, time: Tensor) -> Tensor:
        """The last timestep of at most this `time`, int64; 0 for less than the first one's."""
        return (torch.searchsorted(self.time(torch.arange(self.steps)), time, right=True) - 1).clamp(min=0)

    def _at(self, t: float | Tensor) -> Tensor:
        t = torch.as_tensor(t.detach().cpu() if isinstance(t, Tensor) else t, dtype=torch.float64)
        inside = (t >= 0) & (t <= self.steps - 1)
        if not inside.all():
            outside = t[~inside].flatten()[0].item()
            raise ValueError(
                f"timestep {outside:g} is outside 0 … {self.steps - 1}; clamp it, or use the schedule it belongs to"
            )
        below, above, fraction = self.alphas_cumprod[t.floor().long()], self.alphas_cumprod[t.ceil().long()], t.frac()
        logit, angle = (
            (1 - fraction) * measure(below) + fraction * measure(above)
            for measure in (torch.logit, lambda product: torch.atan2((1 - product).sqrt(), product.sqrt()))
        )
        between = torch.where(logit.isfinite(), torch.sigmoid(logit), torch.cos(angle) ** 2)
        return torch.where(fraction == 0, below, between)


@dataclass(frozen=True)
class Flow:
    """The forward process of a flow model, x = (1 − σ)·x₀ + σ·ε, whose levels are σ in [0, 1].

    A shift s moves an even share u of that range towards noise: σ(u) = s·u / (1 + (s − 1)·u) (Esser et al., arXiv
    2403.03206, eq. 23). 1 moves nothing; a μ, as Flux has it, is s = e^μ. ValueError unless s is finite and above 0.
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift {self.shift} must be a number above 0; 1 leaves the levels evenly spaced")

    def sigma(self, share: float) -> float:
        """σ(u) of a share u in [0, 1] of the range, a float; ValueError outside."""
        if not 0 <= share <= 1:
            raise ValueError(f"share {share} is outside [0, 1]; 0 is a clean image and 1 is noise")
        return self.shift * share / (1 + (self.shift - 1) * share)

    def process(self, sigma: float) -> tuple[float, float]:
        """(α, σ) = (1 − σ, σ): the forward process over σ, as `multistep_sample` wants it."""
        return 1 - sigma, sigma


@dataclass(frozen=True)
class FlowSchedule:
    """A flow model's forward process x = (1 − σ)·x₀ + σ·ε as NoiseSchedule is a diffusion's: its timesteps are σ.

    `flow` has the model's shift, which says where an even share of the range lies. Timesteps may be Python numbers or
    tensors of any shape; one outside [0, 1] is a ValueError.
    """

    flow: Flow = Flow()

    def alpha(self, t: float | Tensor) -> Tensor:
        """1 − σ, float64 on the CPU, in the shape of t."""
        return 1 - self.sigma(t)

    def sigma(self, t: float | Tensor) -> Tensor:
        """σ, float64 on the CPU, in the shape of t."""
        t = torch.as_tensor(t.detach().cpu() if isinstance(t, Tensor) else t, dtype=torch.float64)
        inside = (t >= 0) & (t <= 1)
        if not inside.all():
            outside = t[~inside].flatten()[0].item()
            raise ValueError(f"sigma {outside:g} is outside [0, 1]; a flow model's timesteps here are its sigmas")
        return t

    def process(self, t: float) -> tuple[float, float]:
        """(1 − σ, σ), as `multistep_sample` wants it."""
        return self.flow.process(t)

    def share(self, t: Tensor) -> Tensor:
        """The share u of the range whose σ(u) is t, float64 on the CPU."""
        sigma, shift = self.sigma(t), self.flow.shift
        return sigma / (shift - (shift - 1) * sigma)

    def level(self, share: Tensor) -> Tensor:
        """σ(u) of a share u in [0, 1] of the range (arXiv 2403.03206, eq. 23), float64."""
        share, shift = share.to(torch.float64), self.flow.shift
        return (shift * share / (1 + (shift - 1) * share)).clamp(max=1)

    def time(self, t: Tensor) -> Tensor:
        """σ itself, the time of the flow, float64."""
        return self.sigma(t)

    def at(self, time: Tensor) -> Tensor:
        """The σ of a `time`: itself."""
        return time


Schedule: TypeAlias = NoiseSchedule | FlowSchedule


def lcm_timesteps(steps: int, *, original_steps: int = 50, strength: float = 1.0, train_steps: int = 1000) -> list[int]:
    """The timesteps at which an LCM is evaluated in `steps` steps, descending, as diffusers' LCMScheduler chooses them.

    Latent Consistency Models (arXiv 2310.04378): distillation visits the grid {k, 2k, …} − 1 with
    k = train_steps // original_steps. Image-to-image keeps its first ⌊original_steps·strength⌋ points, and sampling
    takes `steps` of them, evenly spaced from the noisiest. ValueError if there are fewer points than steps.

    >>> lcm_timesteps(4)
    [999, 759, 499, 259]
    """
    check_count("steps", steps)
    check_grid(original_steps, strength, train_steps)
    if steps > original_steps:
        raise ValueError(
            f"steps {steps} is more than the {original_steps} points of the LCM grid; "
            f"use at most {original_steps} steps, or raise original_steps"
        )
    length = int(original_steps * strength)
    if steps > length:
        raise ValueError(
            f"steps {steps} is more than the {length} points that strength {strength} leaves of the "
            f"{original_steps}-point LCM grid; "
            + (f"use at most {length} steps, or " if length else "")
            + f"raise strength above {steps / original_steps:g}"
        )
    stride = train_steps // original_steps
    return [(length - int(i * (length / steps))) * stride - 1 for i in range(steps)]


def custom_timesteps(
    timesteps: Sequence[int], *, original_steps: int = 50, strength: float = 1.0, train_steps: int = 1000
) -> list[int]:
    """A user's own timesteps at which to evaluate an LCM, checked as diffusers' LCMScheduler checks its `timesteps`.

    Image-to-image keeps the last ⌊n·strength⌋ of the n. ValueError unless they descend strictly within
    0 … train_steps − 1 and some are left. Logs a warning of those that distillation never visited, which are off the
    grid {k, 2k, …} − 1, unless they are the `trailing_timesteps` that DMD2, SDXL-Lightning and others are distilled on;
    and of a first one other than train_steps − 1 at strength 1.
    """
    check_grid(original_steps, strength, train_steps)
    if len(timesteps) == 0:
        raise ValueError("the list of timesteps is empty; give at least one, such as 999, 759, 499, 259")
    for t in timesteps:
        if not isinstance(t, Integral) or not 0 <= t < train_steps:
            raise ValueError(f"timestep {t!r} is not a whole number in 0 … {train_steps - 1}, the model's timesteps")
    for before, after in pairwise(timesteps):
        if after >= before:
            raise ValueError(f"timestep {after} follows {before}; give the timesteps in descending order")
    kept = list(timesteps)[len(timesteps) - int(len(timesteps) * strength) :]
    if not kept:
        raise ValueError(
            f"strength {strength} leaves none of the {len(timesteps)} timesteps; "
            f"raise it to {math.ceil(1000 / len(timesteps)) / 1000:g} or more"
        )
    stride = train_steps // original_steps
    strangers = [t for t in timesteps if (t + 1) % stride or t >= original_steps * stride]
    if strangers and list(timesteps) != trailing_timesteps(len(timesteps), train_steps):
        log.warning(
            "timesteps %s are not on the %d-point grid that the LCM was distilled on, %d, %d, …, %d; "
            "the picture may suffer", strangers, original_steps, stride - 1, 2 * stride - 1, original_steps * stride - 1
        )  # fmt: skip
    if strength == 1 and timesteps[0] != train_steps - 1:
        log.warning("the first timestep is %d, not %d, where sampling from noise begins", timesteps[0], train_steps - 1)
    return kept


def trailing_timesteps(steps: int, train_steps: int = 1000) -> list[int]:
    """`steps` evenly spaced timesteps, descending, that begin at the last: diffusers' timestep_spacing="trailing".

    arXiv 2305.08891, Table 2. For 4 steps: 999, 749, 499, 249.
    """
    check_count("steps", steps)
    check_count("train_steps", train_steps)
    if steps > train_steps:
        raise ValueError(f"steps {steps} is more than the model's {train_steps} timesteps; use at most {train_steps}")
    grid = np.arange(train_steps, 0, -train_steps / steps)[:steps]
    return [int(t) - 1 for t in grid.round()]


def lcm_sigmas(steps: int, flow: Flow, *, original_steps: int = 50, strength: float = 1.0) -> list[float]:
    """The LCM grid of a flow model, descending: σ(u) at the shares u = (t + 1)/1000 of `lcm_timesteps`' t.

    Errors are those of `lcm_timesteps`. With shift 5:

    >>> [round(sigma, 4) for sigma in lcm_sigmas(4, Flow(5))]
    [1.0, 0.9406, 0.8333, 0.6373]
    """
    timesteps = lcm_timesteps(steps, original_steps=original_steps, strength=strength)
    return [flow.sigma((t + 1) / 1000) for t in timesteps]


def trailing_sigmas(steps: int, flow: Flow) -> list[float]:
    """`steps` levels of a flow model, descending from noise: σ(u) at u = 1, 1 − 1/n, …, 1/n.

    The flow's counterpart of `trailing_timesteps`, without rounding. With shift 5:

    >>> [round(sigma, 4) for sigma in trailing_sigmas(4, Flow(5))]
    [1.0, 0.9375, 0.8333, 0.625]
    """
    check_count("steps", steps)
    return [flow.sigma((steps - i) / steps) for i in range(steps)]


def trailing_levels(steps: int, schedule: Schedule) -> list[int] | list[float]:
    """`trailing_timesteps` of a NoiseSchedule, `trailing_sigmas` of a FlowSchedule."""
    if isinstance(schedule, FlowSchedule):
        return trailing_sigmas(steps, schedule.flow)
    return trailing_timesteps(steps, schedule.steps)


def expand(values: float | Tensor, x: Tensor) -> Tensor:
    """Coefficients, one for all or (B,) for each image, shaped to multiply x (B, …) on x's device.

    They are float32, or float64 if x is: a product with a half-precision x is computed in float32, whatever B.
    """
    values = torch.as_tensor(values, dtype=None if isinstance(values, Tensor) else torch.float64)
    if values.numel() not in (1, x.shape[0]):
        raise ValueError(f"{values.numel()} coefficients for {x.shape[0]} images; give one, or one for each image")
    dtype = torch.promote_types(x.dtype, torch.float32)
    return values.to(dtype).to(x.device).reshape(-1, *[1] * (x.ndim - 1))


def check_grid(original_steps: int, strength: float, train_steps: int) -> None:
    """ValueError unless 1 <= original_steps <= train_steps and strength is in (0, 1]."""
    check_count("original_steps", original_steps)
    check_count("train_steps", train_steps)
    if original_steps > train_steps:
        raise ValueError(f"original_steps {original_steps} is more than the model's {train_steps} timesteps; lower it")
    if not 0 < strength <= 1:
        raise ValueError(f"strength {strength} is outside (0, 1]; 1 starts from noise, less keeps more of the image")


def check_count(name: str, value: int) -> None:
    """ValueError unless value is a whole number of at least 1."""
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number, 1 or more")
