"""What an adapter of any kind adds to the weight that it is for, W' - W, as its own trainer computes it.

DoRA (arXiv 2402.09353), OFT (arXiv 2306.07280) as LyCORIS and as PEFT have it, BOFT (arXiv 2311.06243) and GLoRA (arXiv
2306.07967) depend on W; LoRA, LoHa, LoKr and dense differences do not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .convert import dense
from .module import Module


def change(weight: Tensor, module: Module) -> Tensor:
    """W' - W in the shape of W (out, in, ...), for a module of `native_adapters` whose size fits W.

    module's tensors are on W's device. float32 or wider if W is.
    """
    roles = module.tensors
    if ".oft_R" in roles:
        return rotated(weight, roles[".oft_R"]) - weight
    if ".oft_blocks" in roles:
        return _orthogonal(weight, roles[".oft_blocks"], roles.get("alpha"), roles.get(".rescale")) - weight
    if ".a1.weight" in roles:
        return _generalized(weight, module)
    delta = dense(module).reshape(weight.shape)
    return rescaled(weight + delta, roles["DoRA"]) - weight if "DoRA" in roles else delta


def rescaled(weight: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA (arXiv 2402.09353, eq. 5): each row of W + Delta W (out, in, ...) gets the norm `magnitude`, (out, 1, ...).

    A magnitude (1, in, ...) is per input, as in older LyCORIS files.
    """
    axis = 0 if len(magnitude) == len(weight) else 1
    norms = weight.transpose(0, axis).flatten(1).norm(dim=1).clamp(min=torch.finfo(weight.dtype).tiny)
    shape = [1] * weight.ndim
    shape[axis] = -1
    return weight * (magnitude.to(weight).flatten() / norms).reshape(shape)


def rotated(weight: Tensor, rotations: Tensor) -> Tensor:
    """OFT (arXiv 2306.07280) on the inputs: W diag(R_1, ..., R_n)^T for R (n, b, b), one for all blocks if n is 1."""
    size = rotations.shape[-1]
    blocks = weight.reshape(len(weight), -1, size)
    rotations = rotations.to(weight).expand(blocks.shape[1], size, size)
    return torch.einsum("onb,ncb->onc", blocks, rotations).reshape(weight.shape)


def _orthogonal(weight: Tensor, blocks: Tensor, constraint: Tensor | None, rescale: Tensor | None) -> Tensor:
    """OFT on the outputs for blocks (n, b, b), BOFT for (m, n, b, b): rotations R of their skew parts, by Cayley.

    The norm of all skew parts is at most `constraint` times out, where it is above 0; `rescale` (out, 1, ...) then
    multiplies the rows.
    """
    blocks = blocks.to(torch.promote_types(weight.dtype, torch.float32))
    skew = blocks - blocks.transpose(-1, -2)
    limit = 0.0 if constraint is None else float(constraint) * len(weight)
    if limit > 0:
        skew = skew * (limit / (skew.norm() + 1e-8)).clamp(max=1)
    eye = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    rotations = torch.linalg.solve(eye - skew, eye + skew, left=False)
    matrix = weight.to(skew.dtype).flatten(1)
    if rotations.ndim == 3:
        matrix = torch.einsum("knm,kni->kmi", rotations, matrix.unflatten(0, rotations.shape[:2])).flatten(0, 1)
    else:
        for stage, rotation in enumerate(rotations):
            matrix = _butterfly(matrix, rotation, 2**stage * (rotation.shape[-1] // 2))
    if rescale is not None:
        matrix = rescale.to(matrix).reshape(-1, 1) * matrix
    return matrix.reshape(weight.shape)


def _butterfly(matrix: Tensor, rotation: Tensor, stride: int) -> Tensor:
    """One stage of BOFT: rows `stride` apart are brought together, turned in blocks by (n, b, b), and put back."""
    mixed = matrix.unflatten(0, (-1, 2, stride)).transpose(1, 2).reshape(*rotation.shape[:2], -1)
    turned = torch.einsum("nij,njk->nik", rotation, mixed).flatten(0, 1)
    return turned.unflatten(0, (-1, stride, 2)).transpose(1, 2).flatten(0, 2)


def _generalized(weight: Tensor, module: Module) -> Tensor:
    """GLoRA: alpha/rank (W A1 A2 + B1 B2), the A's acting on the input axis; a Tucker core lies between the B's."""
    roles = module.tensors
    a1, a2, b1, b2 = (factor.to(weight) for factor in generalized_factors(module))
    rank = a1.shape[1]
    inputs = torch.einsum("oi...,ir,rj->oj...", weight, a1, a2)
    if ".bm.weight" in roles:
        core = roles[".bm.weight"].to(weight)
        outputs = torch.einsum("mn...,om,ni->oi...", core, b1, b2)
    else:
        outputs = b1 @ b2
    return module.alpha(rank) / rank * (inputs + outputs.reshape(weight.shape))


def generalized_factors(module: Module) -> list[Tensor]:
    """GLoRA's A1 (in, rank), A2 (rank, in), B1 (out, rank) and B2 (rank, in*kh*kw).

    Older LyCORIS names them the other way round; where both ways fit, that of the smaller rank is meant.
    """
    tensors = module.need(*(f".{role}.weight" for role in ("a1", "a2", "b1", "b2")))
    if any(tensor.ndim < 2 for tensor in tensors):
        raise module.misfit()
    a1, a2, b1, b2 = (tensor.flatten(1) for tensor in tensors)
    fitting = [
        factors
        for factors in ([a1, a2, b1, b2], [a2, a1, b2, b1])
        if factors[0].shape == factors[1].T.shape and factors[2].shape[1] == len(factors[3]) == len(factors[1])
    ]
    if not fitting:
        raise module.misfit()
    return min(fitting, key=lambda factors: len(factors[1]))
