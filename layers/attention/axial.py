"""Attention along one axis of a tensor with several, and the shifts that make it autoregressive."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from zoo.layers.attention.state import KeyValueState


class AxialAttention(nn.Module):
    r"""Attention among the positions that differ in one axis only.

    .. math:: y_{ij} = W_o \sum_m \mathrm{softmax}_m(q_{ij} \cdot k_{im} / \sqrt{d}) \, v_{im}

    along the rows, and the same with rows and columns exchanged. A tensor of N = S^k positions costs O(N S) instead of
    the O(N^2) of full attention: O(N sqrt(N)) for images.

    Args:
        dim: channels.
        num_heads: H heads of width d = dim / H.
        axis: the axis of the input along which positions attend, 1 for the first after the batch.
        masked: position i sees the positions up to and including i; otherwise all of its line.

    Raises:
        ValueError: when num_heads does not divide dim, or the axis is the batch's or negative.

    Paper: Ho et al., "Axial Attention in Multidimensional Transformers", arXiv 1912.12180.
    """

    def __init__(self, dim: int, num_heads: int, axis: int, masked: bool = False):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide dim: got dim {dim}, num_heads {num_heads}")
        if axis < 1:
            raise ValueError(f"axis must count from 1, the first after the batch, got {axis}")
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.axis, self.masked = axis, masked
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, state: KeyValueState | None = None) -> Tensor:
        """x (B, *axes, dim) -> the same shape.

        Args:
            state: from ``init_state``, masked attention only: x holds the next position of the axis, which also sees
                those of earlier calls.

        Raises:
            ValueError: when the axis is not one of x's, or a state does not fit.
        """
        if not self.axis < x.dim() - 1:
            raise ValueError(f"the input must have an axis {self.axis} before its channels, got shape {tuple(x.shape)}")
        if state is not None and (not self.masked or x.shape[self.axis] != 1):
            raise ValueError(
                "a state goes with masked attention and one position of the axis at a time, got "
                f"masked {self.masked} and {x.shape[self.axis]} positions"
            )
        lines = x.movedim(self.axis, -2)
        q, k, v = rearrange(self.qkv(lines), "... t (three h d) -> three (...) h t d", three=3, h=self.num_heads)
        if state is not None:
            k, v, _ = state.append(k, v, None)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.masked and state is None)
        return self.proj(rearrange(y, "n h t d -> n t (h d)").view_as(lines)).movedim(-2, self.axis)

    def init_state(self, num_lines: int, length: int, like: Tensor) -> KeyValueState:
        """An empty cache.

        Args:
            num_lines: the batch times all axes but this one.
            length: most positions of the axis.
            like: an input, whose device and dtype the cache has.
        """
        shape = (num_lines, self.num_heads, length, self.head_dim)
        return KeyValueState(like.new_zeros(shape), like.new_zeros(shape), max_length=length)


def shift_down(x: Tensor) -> Tensor:
    """x (B, H, W, dim) moved down by a row: zeros in the first, the last one is gone."""
    return _shift(x, 1)


def shift_right(x: Tensor) -> Tensor:
    """x (B, H, W, dim) moved right by a column: zeros in the first, the last one is gone."""
    return _shift(x, 2)


def _shift(x: Tensor, axis: int) -> Tensor:
    kept = x.narrow(axis, 0, x.shape[axis] - 1)
    return torch.cat([torch.zeros_like(x.narrow(axis, 0, 1)), kept], dim=axis)
