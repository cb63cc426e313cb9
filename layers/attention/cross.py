"""Attention from one set of tokens to another, with rotary positions on maps, and over pooled memories of them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.rope import rope


class CrossAttention(nn.Module):
    r"""Attention with a projection each for queries, keys and values; parameter names of SAM.

    .. math:: y = W_o \, \mathrm{softmax}(q k^\top / \sqrt{d}) \, v, \quad q = W_q x_q, \; k = W_k x_k, \; v = W_v x_v

    Args:
        dim: of queries and output.
        num_heads: heads, which share ``inner_dim``.
        inner_dim: of all heads together; dim where None.
        kv_dim: of what keys and values are made of; dim where None.
        drop_rate: dropout of the weights.

    Raises:
        ValueError: when num_heads does not divide inner_dim.
    """

    def __init__(
        self, dim: int, num_heads: int, inner_dim: int | None = None, kv_dim: int | None = None, drop_rate: float = 0.0
    ):
        super().__init__()
        inner_dim, kv_dim = inner_dim or dim, kv_dim or dim
        if num_heads < 1 or inner_dim % num_heads:
            raise ValueError(f"num_heads must divide inner_dim: got inner_dim {inner_dim}, num_heads {num_heads}")
        self.num_heads, self.drop_rate = num_heads, drop_rate
        self.q_proj = nn.Linear(dim, inner_dim)
        self.k_proj, self.v_proj = (nn.Linear(kv_dim, inner_dim) for _ in range(2))
        self.out_proj = nn.Linear(inner_dim, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, N, dim), k and v (B, M, kv_dim) -> (B, N, dim)."""
        return self.mixed(*self.heads(q, k, v))

    def heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the heads see: (B, N or M, H, d)."""
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        return tuple(x.unflatten(-1, (self.num_heads, -1)) for x in (q, k, v))  # type: ignore[return-value]

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """The output for that; ``bias`` (M,) is added to the scores of each key."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        rate = self.drop_rate if self.training else 0.0
        mask = None if bias is None else bias.expand(q.shape[2], -1)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, mask, rate).transpose(1, 2).flatten(2))


class MapAttention(CrossAttention):
    r"""Queries of one map to maps of the same size and further tokens, positions as rotations by column and row.

    With ``pool`` p > 1, several maps are read in cells of p x p places: of each cell the mean key, after its rotation,
    and the mean value, with the score that its p^2 keys would share,

    .. math:: q^\top \bar k / \sqrt{d} + \ln p^2

    This is full attention where keys are constant in each cell, whatever the values are; otherwise it is an
    approximation. One map alone and the further tokens are read as they are.

    Args:
        pool: side of a cell.

    Paper: Xiong et al., "Efficient Track Anything", arXiv 2411.18933, section 3 (the first variant of the authors'
    code; the second adds the logarithm to every channel of the keys, which is something else).
    """

    def __init__(self, dim: int, num_heads: int, *, pool: int = 1, kv_dim: int | None = None, drop_rate: float = 0.0):
        super().__init__(dim, num_heads, kv_dim=kv_dim, drop_rate=drop_rate)
        self.pool = pool

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, tables: tuple[Tensor, Tensor], grid: tuple[int, int], maps: int = 1
    ) -> Tensor:
        """q (B, N, dim) and k, v (B, M, kv_dim), of which the first ``maps`` N tokens are maps -> (B, N, dim).

        Args:
            tables: cos and sin (N, d / 2) of the places, see ``planar_tables``.
            grid: (h, w) of a map, N = h w.
        """
        q, k, v = self.heads(q, k, v)
        length, rows = q.shape[1], k.shape[0]
        q = rope(q, *tables, interleaved=True)
        of_maps, others = k[:, : maps * length], k[:, maps * length :]
        of_maps = rope(of_maps.unflatten(1, (maps, length)).flatten(0, 1), *tables, interleaved=True)
        of_maps = of_maps.unflatten(0, (rows, maps)).flatten(1, 2)
        if self.pool == 1 or maps == 1:
            return self.mixed(q, torch.cat([of_maps, others], 1), v)
        cells = self._pooled(of_maps, grid)
        bias = cells.new_zeros(cells.shape[1] + others.shape[1])
        bias[: cells.shape[1]] = 2 * math.log(self.pool)
        v = torch.cat([self._pooled(v[:, : maps * length], grid), v[:, maps * length :]], 1)
        return self.mixed(q, torch.cat([cells, others], 1), v, bias)

    def _pooled(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Means of the cells of maps one after another, (B, maps N, H, d) -> (B, maps N / pool^2, H, d)."""
        (height, width), p = grid, self.pool
        maps = x.shape[1] // (height * width)
        return x.unflatten(1, (maps, height // p, p, width // p, p)).mean((3, 5)).flatten(1, 3)
