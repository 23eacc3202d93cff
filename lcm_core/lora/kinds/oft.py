"""OFT (arXiv 2306.07280) on the outputs and BOFT (arXiv 2311.06243), as LyCORIS and kohya have them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..module import Module
from .kind import Kind, Role, Size

WHY = "OFT rotates the base weight, so what it adds depends on the base model"


def _size(module: Module, before: Size) -> Size:
    (blocks,), rescale = module.need("oft_blocks"), module.tensors.get("rescale")
    if blocks.ndim not in (3, 4):
        raise module.misfit()
    *stages, count, rows, columns = blocks.shape
    butterfly = not stages or (rows % 2 == 0 and stages[0] < 64 and count % 2 ** (stages[0] - 1) == 0)
    if rows != columns or not butterfly or (rescale is not None and rescale.numel() != count * rows):
        raise module.misfit()
    return count * rows, None


def _change(module: Module, weight: Tensor) -> Tensor:
    """For blocks (n, b, b), of BOFT (m, n, b, b): rotations R of their skew parts, by Cayley.

    The norm of all skew parts is at most alpha times out, where alpha is above 0; `rescale` (out, 1, ...) then
    multiplies the rows.
    """
    blocks = module.tensors["oft_blocks"]
    blocks = blocks.to(torch.promote_types(weight.dtype, torch.float32))
    skew = blocks - blocks.transpose(-1, -2)
    limit = float(module.tensors.get("alpha", 0.0)) * len(weight)
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
    if "rescale" in module.tensors:
        matrix = module.tensors["rescale"].to(matrix).reshape(-1, 1) * matrix
    return matrix.reshape(weight.shape) - weight


def _butterfly(matrix: Tensor, rotation: Tensor, stride: int) -> Tensor:
    """One stage of BOFT: rows `stride` apart are brought together, turned in blocks by (n, b, b), and put back."""
    mixed = matrix.unflatten(0, (-1, 2, stride)).transpose(1, 2).reshape(*rotation.shape[:2], -1)
    turned = torch.einsum("nij,njk->nik", rotation, mixed).flatten(0, 1)
    return turned.unflatten(0, (-1, stride, 2)).transpose(1, 2).flatten(0, 2)


KIND = Kind(
    name="OFT",
    roles={"oft_blocks": Role(".oft_blocks", r"\.oft_blocks(?:\.\w+)+"), "rescale": Role(".rescale")},
    size=_size,
    change=_change,
    not_a_vector=WHY,
)
