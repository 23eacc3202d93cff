"""KnOTS (arXiv 2410.19735): TIES where the vectors of a module are aligned by one singular value decomposition."""

from collections.abc import Sequence

import torch

from ..lowrank import Factors, Limits, check_shapes
from ..method import method
from ..options import Density, MajoritySign
from ..pruning import elected_mean, keep_largest
from ..terms import Merge, Terms
from ..vector import LoRAVector


@method()
def knots(
    vectors: Sequence[LoRAVector],
    weights: Sequence[float],
    *,
    density: Density = 0.5,
    majority_sign_method: MajoritySign = "total",
) -> Merge:
    """ties in a basis that all vectors share, found by an SVD (KnOTS, arXiv 2410.19735). For LoRAs of other bases.

    [ΔW_1 … ΔW_n] = U Σ [V_1ᵀ … V_nᵀ], the matrices side by side; each Σ V_iᵀ is pruned, TIES merges them, and U times
    that is ΔW. Both are made of the factors, so ΔW is never multiplied out and the result is exact, of the rank of
    all ups together. Of a column of U the largest value is positive: a vote that is even elects the positive sign.
    """
    prune, fuse = keep_largest(density), elected_mean(majority_sign_method)

    def merge(name: str, terms: Terms) -> Sequence[Factors]:
        shape = max((factors.shape for _, factors in terms), key=len)
        downs, ups = [], []
        for _, factors in terms:
            check_shapes(name, terms[0][1].shape, factors.shape)
            down, up = (matrix.to(terms[0][1].down.device) for matrix in factors.matrices(torch.float64))
            downs.append(torch.linalg.qr(down.T))
            ups.append(up)
        left, mix = torch.linalg.qr(torch.cat(ups, 1))
        blocks = mix.split([up.shape[1] for up in ups], 1)
        core = torch.cat([block @ right.T for block, (_, right) in zip(blocks, downs, strict=True)], 1)
        u, s, vh = torch.linalg.svd(core, full_matrices=False)
        u = left @ u
        signs = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()
        keep = Limits().kept(s.square(), shape)
        rows = ((s * signs[0])[:keep, None] * vh[:keep]).split([q.shape[1] for q, _ in downs], 1)
        aligned = [part @ q.T for part, (q, _) in zip(rows, downs, strict=True)]
        pruned = [prune(name, i, matrix) for (i, _), matrix in zip(terms, aligned, strict=True)]
        merged = fuse(pruned, [weights[i] for i, _ in terms])
        dtype = max((factors.dtype for _, factors in terms), key=lambda dtype: dtype.itemsize)
        return [Factors.of_matrices(merged.to(dtype), (u * signs)[:, :keep].to(dtype), shape)]

    return merge
