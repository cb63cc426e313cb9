"""The long convolution of packed sequences, by halving: no transform sees two sequences."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.dispatch import Sizes, check_device, check_floating, compute_dtype
from zoo.kernels.long_conv.op import long_conv


def packed_long_conv(u: Tensor, kernel: Tensor, seq_idx: Tensor, *, D: Tensor | None = None) -> Tensor:
    r"""Causal convolution of each channel that restarts where a new sequence begins.

    .. math:: y_t = \sum_{j=0}^{\min(t - s_t, L-1)} k_j u_{t-j} + D u_t

    with :math:`s_t` the first step of the sequence of t. The row is halved again and again: of each block, the one
    sequence that runs through its middle is carried from the left half to the right one by a circular ``long_conv`` of
    the block. Every shape is known beforehand, memory is linear in T, and it costs about log2(T) / 2 convolutions of
    the whole row. Other sequences and later steps have no influence at all, not even by rounding.

    Args:
        u: (B, T, D), any floating dtype; computed in float32 (float64 if u, kernel or D is float64).
        kernel: (D, L), the taps of each channel.
        seq_idx: (B, T) integers, equal within a sequence.
        D: (D,).

    Returns:
        y (B, T, D) in the dtype of u, differentiable in u, kernel and D.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together, or an empty sequence or kernel.
    """
    sizes = Sizes("packed_long_conv")
    sizes.check("BTD", u=u)
    sizes.check("DL", kernel=kernel)
    sizes.check("BT", seq_idx=seq_idx)
    sizes.check("D", D=D)
    length = sizes["T"]
    check_floating("packed_long_conv", u=u, kernel=kernel, D=D)
    check_device("packed_long_conv", u=u, kernel=kernel, seq_idx=seq_idx, D=D)
    if length == 0 or kernel.shape[1] == 0:
        raise ValueError(f"packed_long_conv: T and L must be at least 1, got T {length}, L {kernel.shape[1]}")

    dtype = compute_dtype(u, kernel, D)
    padding = (1 << (length - 1).bit_length()) - length
    x, k = F.pad(u.to(dtype), (0, 0, 0, padding)), kernel.to(dtype)
    sequence = F.pad((seq_idx[:, 1:] != seq_idx[:, :-1]).cumsum(1), (1, padding))
    y = x * (k[:, 0] if D is None else k[:, 0] + D)
    half = 1
    while half < length:
        blocks, numbers = x.unflatten(1, (-1, 2 * half)), sequence.unflatten(1, (-1, 2 * half))
        elsewhere = (numbers != numbers[..., half - 1 : half])[..., None]  # (B, blocks, 2 * half, 1)
        left, right = slice(None, half), slice(half, None)
        carried = F.pad(blocks[:, :, left].masked_fill(elsewhere[:, :, left], 0), (0, 0, 0, half))
        reached = long_conv(carried.flatten(0, 1), k[:, : 2 * half], circular=True).view_as(blocks)
        added = reached[:, :, right].masked_fill(elsewhere[:, :, right], 0)
        y = y + F.pad(added, (0, 0, half, 0)).flatten(1, 2)
        half *= 2
    return y[:, :length].to(u.dtype)
