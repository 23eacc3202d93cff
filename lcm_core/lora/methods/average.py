"""The mean of the checkpoints of one training, plain or as an exponential moving average."""

from collections.abc import Sequence
from typing import Annotated

from ..lowrank import Factors, concatenate, truncate
from ..method import Option, method
from ..terms import Merge, Terms, scaled
from ..vector import LoRAVector

Decay = Annotated[float, Option("how much each vector counts in proportion to the next", 10, 0, 1, above=True)]


@method()
def average(vectors: Sequence[LoRAVector], weights: Sequence[float], *, decay: Decay = 1.0) -> Merge:
    """Σ wᵢ·τᵢ / Σ wᵢ, exact: the mean of a training's checkpoints; decay below 1 makes it their moving average (EMA).

    With decay β vector i of n counts β^(n-1-i) times its weight, so the last one is the newest: the average
    e ← β·e + (1-β)·τ without its bias to the first.

    It is the mean of ΔW. The mean of the factors, which scripts for EMA after training take, is another:
    mean(B)·mean(A) lacks the covariance of B and A, and is right only where one of the two is the same in all files.
    The rank is that of the mean: what the files have in common counts once; `rank` cuts what their differences add.

    Raises ValueError where the weights sum to 0.
    """
    counts = [weight * decay ** (len(weights) - 1 - i) for i, weight in enumerate(weights)]
    whole = sum(counts)
    if not whole:
        given = ", ".join(f"{weight:g}" for weight in weights)
        raise ValueError(f"the weights {given} sum to 0; give weights of another sum, such as 1 each")

    def merge(name: str, terms: Terms) -> Sequence[Factors]:
        return [truncate(concatenate(name, scaled(name, terms, [count / whole for count in counts])))]

    return merge
