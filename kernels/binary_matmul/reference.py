"""The product with scaled signs as its definition: the matrix that they stand for, then the product."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.binary_matmul.planes import unpack_planes
from zoo.kernels.dispatch import compute_dtype


def forward(x: Tensor, planes: Tensor, alpha: Tensor, offset: Tensor | None) -> Tensor:
    """x (M, C), planes (N, P, bytes), alpha (N, G, P), offset (N, G) or None -> (M, N), differentiable by autograd."""
    wide = compute_dtype(x, alpha)
    w = dequantise(planes, alpha.to(wide), offset, columns=x.shape[-1])
    return (x.to(wide) @ w.mT).to(x.dtype)


def dequantise(planes: Tensor, alpha: Tensor, offset: Tensor | None = None, *, columns: int) -> Tensor:
    r"""The matrix that planes stand for: :math:`w = \sum_p \alpha_p b_p + o` with :math:`b_p \in \{-1, 1\}`.

    Args:
        planes: (..., N, P, bytes) uint8, of ``pack_planes``; a bit of 1 is the sign +1.
        alpha: (..., N, G, P), for each of G groups of columns.
        offset: (..., N, G); None for 0.
        columns: C.

    Returns:
        (..., N, C) float32, or float64 of a float64 alpha.
    """
    wide, groups = compute_dtype(alpha), alpha.shape[-2]
    signs = unpack_planes(planes, columns).to(wide) * 2 - 1  # (..., N, P, C)
    parts = signs.unflatten(-1, (groups, -1)) * alpha.to(wide).mT[..., None]  # (..., N, P, G, columns of a group)
    w = parts.sum(-3)
    return (w if offset is None else w + offset.to(wide)[..., None]).flatten(-2)
