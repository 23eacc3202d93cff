"""Spherical linear interpolation of two vectors."""

import math
from collections.abc import Sequence
from typing import Annotated

from ..lowrank import Factors
from ..method import Option, method
from ..terms import PARALLEL, Merge, Terms, scaled
from ..vector import LoRAVector

Place = Annotated[float, Option("the place between the first vector, 0, and the second, 1", 2, 0, 1)]


@method(vectors=2)
def slerp(
    vectors: Sequence[LoRAVector],
    weights: Sequence[float],
    *,
    t: Place = 0.5,
) -> Merge:
    """Along the arc from w_a·a to w_b·b, module by module, exact; t is the place on it.

    With the angle A between the two: sin((1-t)A)/sin(A) a + sin(t A)/sin(A) b; (1-t) a + t b where |cos A| > 0.9995 or
    one is zero.
    """

    def merge(name: str, terms: Terms) -> Sequence[Factors]:
        shares = (1 - t, t)
        if len(terms) == 2:
            a, b = (LoRAVector({name: factors}) for factors in scaled(name, terms, weights))
            cosine = a.cosine(b)
            if a.norm() and b.norm() and abs(cosine) <= PARALLEL:
                angle = math.acos(cosine)
                shares = (math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle))
        return scaled(name, terms, [share * weight for share, weight in zip(shares, weights, strict=True)])

    return merge
