"""Causal convolution with a kernel as long as the sequence, for whole and for packed sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.long_conv import long_conv

DIRECT = 64  # steps up to which a product with the Toeplitz matrix is cheaper than transforms, and exactly causal


def convolve(u: Tensor, past: Tensor, future: Tensor | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
    r"""Each channel with its own kernel: :math:`y_t = \sum_{j \le t} k_{t-j} u_j + \sum_{j > t} k'_{j-t-1} u_j`.

    Args:
        u: (B, T, D).
        past: k (D, T), float32 or float64.
        future: k' (D, T), or None for a causal convolution.
        seq_idx: (B, T) integers; each run of equal ones is convolved by itself. Their number and lengths decide the
            shapes of the computation, so that one with seq_idx cannot be traced as a single graph.

    Returns:
        y (B, T, D) in the dtype of u. Beyond ``DIRECT`` steps "causal" holds up to the rounding of the transforms.
    """
    if seq_idx is not None and len(u) > 0:
        return _packed(u, past, future, seq_idx)
    if future is None:
        return _causal(u, past)
    both = _causal(torch.cat([u, u.flip(1)], -1), torch.cat([past, F.pad(future, (1, -1))]))
    forward, backward = both.chunk(2, -1)
    return forward + backward.flip(1)


def _causal(u: Tensor, kernel: Tensor) -> Tensor:
    length = u.shape[1]
    if length > DIRECT:
        return long_conv(u, kernel)
    toeplitz = F.pad(kernel.flip(-1), (0, length - 1)).unfold(-1, length, 1).flip(-2)  # (D, T, T)
    return torch.einsum("dts,bsd->btd", toeplitz, u.to(kernel.dtype)).to(u.dtype)


def _packed(u: Tensor, past: Tensor, future: Tensor | None, seq_idx: Tensor) -> Tensor:
    """Each sequence in a row of its own, zeros behind it, and back."""
    starts = sequence_starts(seq_idx)
    time = torch.arange(u.shape[1], device=u.device).expand_as(starts)
    position = time - time.where(starts, 0).cummax(1).values
    row = starts.flatten().cumsum(0).view_as(position) - 1
    longest = int(position.max()) + 1
    rows = u.new_zeros(int(row[-1, -1]) + 1, longest, u.shape[2]).index_put((row, position), u)
    return convolve(rows, past[:, :longest], None if future is None else future[:, :longest])[row, position]


def sequence_starts(seq_idx: Tensor) -> Tensor:
    """seq_idx (B, T) -> mask (B, T) of the tokens whose id is not that of the one before."""
    return F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0), value=True)
