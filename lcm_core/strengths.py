"""λ over the steps: a schedule of a LoRA vector's strength, written as a text.

τ'_LCM = λ₁·τ' + λ₂·τ_LCM (arXiv 2311.05556, eq. 3) has constant λ; here each λ is a step function of sampling.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .text import quoted

MOST_CHANGES = 1000
MOST_FACTOR = 10.0
REMEDY = "write such as 0: 0, 0.25: 1 for shares of the steps, or step 1: 0, step 2: 1"


@dataclass(frozen=True)
class Change:
    """From `start` on the strength is multiplied by `factor`.

    start: a share of the steps in 0 … 1, from the first; or, `by_step`, the number of a step, from 1.
    """

    start: float
    by_step: bool
    factor: float

    def first(self, steps: int) -> int:
        """The first of `steps` steps, counted from 0, that has it; a share that ends inside a step leaves that step.

        ValueError for a step that there is not.
        """
        if not self.by_step:
            return math.ceil(self.start * steps - 1e-6)
        if self.start > steps:
            raise ValueError(
                f"the schedule names step {self.start:g} and there are {steps} steps; name one of 1 to {steps}, "
                "write shares, or connect all sigmas where a sampler makes a part of them"
            )
        return int(self.start) - 1


def parse_strengths(text: str) -> tuple[Change, ...]:
    """The changes of a text like "0: 0, 0.25: 0.8" or "step 1: 0, step 3: 0.8", parted by commas, semicolons or lines.

    Each is held until the next; an empty text has none. ValueError for a text that is no such list, leaves the first
    step open, names a start twice, or has numbers out of range.
    """
    parts = [part.strip() for part in re.split(r"[,;\n]", text) if part.strip()]
    if len(parts) > MOST_CHANGES:
        raise ValueError(f"the schedule has {len(parts):,} changes and takes {MOST_CHANGES:,} at most; write fewer")
    changes = tuple(map(_change, parts))
    starts = [(change.by_step, change.start) for change in changes]
    if twice := next((part for i, part in enumerate(parts) if starts[i] in starts[:i]), None):
        raise ValueError(f"the schedule's {quoted(twice)} begins where another change does; keep one of them")
    if changes and not {(False, 0.0), (True, 1.0)} & set(starts):
        raise ValueError(
            f"the schedule begins with {quoted(parts[0])} and leaves the steps before it open; begin with 0: 0 for "
            "none of the vector there, or 0: 1 for all of it"
        )
    return changes


def _change(part: str) -> Change:
    found = re.fullmatch(r"(step\s*)?([^:\s]+)\s*:\s*([^:\s]+)", part, re.IGNORECASE)
    if found is None:
        raise ValueError(f"the schedule has {quoted(part)}; {REMEDY}")
    by_step, start, factor = found[1] is not None, _number(found[2]), _number(found[3])
    if by_step and not (start >= 1 and start.is_integer()):
        raise ValueError(f"the schedule has {quoted(part)}, and steps are whole numbers from 1; {REMEDY}")
    if not by_step and not 0 <= start < 1:
        raise ValueError(f"the schedule has {quoted(part)}, and a share is 0 or more and below 1; {REMEDY}")
    if abs(factor) > MOST_FACTOR:
        raise ValueError(
            f"the schedule has {quoted(part)}; a strength is between −{MOST_FACTOR:g} and {MOST_FACTOR:g}, such as 0.8"
        )
    return Change(start, by_step, factor)


def _number(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"the schedule has {quoted(word)}, which is no finite number; {REMEDY}")
    return value


def step_factors(changes: Sequence[Change], steps: int) -> list[float]:
    """The factor of each of `steps` steps: of the last change that begins there or before; 1 without changes.

    Of two that begin at one step the later written counts. ValueError for a step that there is not.
    """
    factors = [1.0] * steps
    for change in sorted(changes, key=lambda change: change.first(steps)):
        first = change.first(steps)
        factors[first:] = [change.factor] * (steps - first)
    return factors


def factor_at(changes: Sequence[Change], sigma: float, sigmas: Sequence[float]) -> float:
    """The factor at a noise level, σ, of a run over `sigmas` (n + 1 of n steps, descending).

    The step of a level between two sigmas is the one that began at the higher. ValueError for a step that there is not.
    """
    steps = len(sigmas) - 1
    begun = sum(level >= sigma * (1 - 1e-4) for level in sigmas[:-1])
    return step_factors(changes, steps)[max(begun, 1) - 1]
