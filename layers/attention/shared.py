"""A transformer block that several places of a model share, each with low-rank additions of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.attention.causal import CausalAttention
from zoo.layers.attention.keys import Place
from zoo.layers.attention.rotary import Rotary
from zoo.layers.attention.state import KeyValueState
from zoo.layers.norm import RMSNorm


class LowRank(nn.Sequential):
    """y = B A x, without biases.

    Args:
        dim: of x.
        rank: rows of A.
        out_dim: rows of B.
    """

    def __init__(self, dim: int, rank: int, out_dim: int):
        super().__init__(nn.Linear(dim, rank, bias=False), nn.Linear(rank, out_dim, bias=False))
        nn.init.zeros_(self[1].weight)  # type: ignore[arg-type]


class Adapters(nn.Module):
    """What one place adds to the projections of the shared block; ``q``, ``k``, ``v`` are None without adapters there.

    Args:
        dim: model width; the attention reads twice of it.
        rank: of each.
        heads: channels of queries, and of keys and values; None without adapters there.
        hidden_dim: hidden width of the feed-forward layer.
    """

    def __init__(self, dim: int, rank: int, heads: tuple[int, int] | None, hidden_dim: int):
        super().__init__()
        queries, keys = (None, None) if heads is None else heads
        self.q, self.k, self.v = (
            None if width is None else LowRank(2 * dim, rank, width) for width in (queries, keys, keys)
        )
        self.mlp = LowRank(dim, rank, 2 * hidden_dim)


class SharedAttention(CausalAttention):
    """Causal attention from twice the model width to it.

    Args:
        dim: model width.
        num_heads, num_kv_heads: query heads, and key and value heads.
        rope_base: wavelength base of the rotary positions, None for none.

    Paper: Glorioso et al., "Zamba2", arXiv 2411.15242.
    """

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int, rope_base: float | None = None):
        head_dim = 2 * dim // num_heads
        rotary = None if rope_base is None else Rotary(head_dim, rope_base)
        super().__init__(2 * dim, num_heads, num_kv_heads, None, scale=(head_dim / 2) ** -0.5, rotary=rotary)
        self.out_proj = nn.Linear(num_heads * head_dim, dim, bias=False)

    def forward(  # type: ignore[override]
        self, x: Tensor, adapters: Adapters, state: KeyValueState | None = None, *, seq_idx: Tensor | None = None
    ) -> Tensor:
        """x (B, T, 2 dim) -> (B, T, dim)."""
        place = Place.of(x, state, seq_idx)
        pairs = ((self.q_proj, adapters.q), (self.k_proj, adapters.k), (self.v_proj, adapters.v))
        projected = (shared(x) if own is None else shared(x) + own(x) for shared, own in pairs)
        q, k, v = (heads.unflatten(-1, (-1, self.head_dim)) for heads in projected)
        q, k = self.rotated(place.position, q, k)  # (B, T, H, d)
        y = self.mix(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), place, state)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class SharedTransformer(nn.Module):
    r"""A block without residual connections, on the stream x and the embedding :math:`x_0`.

    .. math::
        y = \mathrm{mlp}(n(\mathrm{attention}(n([x; x_0])))), \quad
        \mathrm{mlp}(u) = W_2(\mathrm{gelu}(a) \odot b), \; [a; b] = W_1 u + B A u

    Args:
        dim: model width.
        num_heads, num_kv_heads, rope_base: of the attention.
        hidden_dim: of the feed-forward layer.
        eps: of the norms.

    Paper: Glorioso et al., "Zamba2", arXiv 2411.15242.
    """

    def __init__(
        self, dim: int, num_heads: int, num_kv_heads: int, rope_base: float | None, hidden_dim: int, eps: float = 1e-5
    ):
        super().__init__()
        self.norm = RMSNorm(2 * dim, eps)
        self.attention = SharedAttention(dim, num_heads, num_kv_heads, rope_base)
        self.mlp_norm = RMSNorm(dim, eps)
        self.w1 = nn.Linear(dim, 2 * hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)

    def forward(
        self,
        x: Tensor,
        first: Tensor,
        adapters: Adapters,
        state: KeyValueState | None = None,
        seq_idx: Tensor | None = None,
    ) -> Tensor:
        """x and first (B, T, dim) -> (B, T, dim)."""
        y = self.attention(self.norm(torch.cat([x, first], dim=-1)), adapters, state, seq_idx=seq_idx)
        y = self.mlp_norm(y)
        a, b = (self.w1(y) + adapters.mlp(y)).chunk(2, dim=-1)
        return self.w2(F.gelu(a) * b)
