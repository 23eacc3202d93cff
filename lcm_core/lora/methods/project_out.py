"""One vector without its part along another."""

from collections.abc import Sequence

from ..lowrank import Factors, inner_product
from ..method import method
from ..options import PerModule
from ..terms import Merge, Terms, scaled
from ..vector import LoRAVector


@method(vectors=2, removes=True)
def project_out(vectors: Sequence[LoRAVector], weights: Sequence[float], *, per_module: PerModule = False) -> Merge:
    """w_a·(a − w_b·p), p being the part of a along b, exact. It removes from a what it shares with b.

    p = <a, b> / <b, b> b; w_b = 1 removes it all. Of a module that is in b alone nothing comes with per_module.
    """
    first, removed = weights
    whole = vectors[1].dot(vectors[1])
    whole_share = vectors[0].dot(vectors[1]) / whole if whole and not per_module else 0.0

    def merge(name: str, terms: Terms) -> Sequence[Factors]:
        share = whole_share
        if per_module:
            if terms[0][0] == 1:
                return []
            if len(terms) == 2:
                (_, a), (_, b) = terms
                squared = inner_product(name, b, b)
                share = inner_product(name, a, b) / squared if squared else 0.0
        return scaled(name, terms, (first, -first * removed * share))

    return merge
