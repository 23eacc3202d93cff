"""Model Breadcrumbs (arXiv 2312.06795): neither the smallest values nor the outliers."""

from collections.abc import Sequence
from typing import Annotated

from ..method import Option, method
from ..options import Density
from ..pruning import dense, keep_largest, weighted_sum
from ..terms import Merge
from ..vector import LoRAVector

Gamma = Annotated[float, Option("the share of the values that is dropped as too large", 7, 0, 1)]


@method()
def breadcrumbs(
    vectors: Sequence[LoRAVector],
    weights: Sequence[float],
    *,
    density: Density = 0.5,
    gamma: Gamma = 0.01,
) -> Merge:
    """As magnitude_prune, but the share gamma of the very largest values goes too (Breadcrumbs, arXiv 2312.06795).

    Of the values of each ΔW by magnitude the largest share gamma goes, the share density below it stays, the paper's
    1 - β being gamma + density. Raises ValueError where the two are above 1 together.
    """
    if density + gamma > 1:
        raise ValueError(
            f"density {density} and gamma {gamma} are {density + gamma:g} together, and at most 1; lower one of them"
        )
    return dense(weights, keep_largest(density, gamma), weighted_sum)
