"""What a recipe says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Grid = Literal["lcm", "trailing", "timesteps", "sigmas"]
Expert = Literal["high", "low"]
GRIDS: dict[str, str] = {
    "lcm": "the LCM grid",
    "trailing": "the trailing grid",
    "timesteps": "its own timesteps",
    "sigmas": "its own sigmas",
}


@dataclass(frozen=True)
class Span:
    """A value that a recipe takes, and the least and the most that its sources give."""

    default: float
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        """Whether low ≤ value ≤ high, but for a rounding error."""
        return self.low <= value <= self.high or any(
            math.isclose(value, end, rel_tol=1e-6, abs_tol=1e-9) for end in (self.low, self.high)
        )

    def __str__(self) -> str:
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Recipe:
    """How the acceleration LoRAs of one family are sampled.

    name: its key in the table, which a user's own entry of that name replaces. label: what a person reads.
    bases: labels of `bases.BASES` that the files are for.
    grid: which levels the model is evaluated at; `given` are those of "timesteps" and "sigmas", descending.
    original_steps: N₀ of the LCM grid. steps: the numbers of evaluations that it takes.
    gamma: stochasticity of `multistep_sample`; 1 is LCM's multistep sampling, 0 is DDIM or Euler, between is TCD's.
    cfg: classifier-free guidance, 1 for none. guidance: the distilled guidance of a Flux model, None where there is
        none. shift: of a flow model; None leaves the model's own. strength: of the LoRA.
    expert: the half of a pair of files and models, for high or for low noise, that it is for.
    files: regular expressions that find its files' names, read by `naming.plain` into lower-case words; a group named
        `steps` reads the number of steps. words: those that, in a file's name, speak of this family.
    sha256: the hash of a known file in hexadecimal -> its published name.
    modules: (number of modules, their rank, base) of the released files. sources: addresses that say all this.
    """

    name: str
    family: str
    bases: tuple[str, ...]
    grid: Grid
    steps: tuple[int, ...]
    default_steps: int
    gamma: Span
    label: str = ""
    given: tuple[float, ...] = ()
    original_steps: int = 50
    cfg: Span = Span(1, 1, 1)
    guidance: Span | None = None
    shift: Span | None = None
    strength: Span = Span(1, 1, 1)
    expert: Expert | None = None
    files: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict, hash=False)
    modules: tuple[tuple[int, int, str], ...] = ()
    note: str = ""
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.family)
