"""Attention written out with full matrices, for one row: what the definitions of cache policies are tested against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.layers import CausalAttention
from zoo.layers.cache.build import governed

DIM = 24


def attention(num_heads: int = 4, num_kv_heads: int = 2) -> CausalAttention:
    """With sharp weights, so that tokens differ in what they are given."""
    torch.manual_seed(1)
    layer = CausalAttention(DIM, num_heads, num_kv_heads).double()
    with torch.no_grad():
        layer.q_proj.weight *= 4
    return layer


def begun(layer: CausalAttention, policy: Any, rows: int = 1) -> Any:
    """The layer's empty state under a policy."""
    (state,) = governed([layer.init_state(rows)], [policy])
    return state


def heads(layer: CausalAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (H, T, d) of x (1, T, dim), before they are turned, each key-value head as often as it
    is read."""
    q, k, v = (proj(x)[0].unflatten(-1, (-1, layer.head_dim)) for proj in (layer.q_proj, layer.k_proj, layer.v_proj))
    group = layer.num_heads // layer.num_kv_heads
    return q.transpose(0, 1), *(one.transpose(0, 1).repeat_interleave(group, 0) for one in (k, v))


def turned(layer: CausalAttention, one: Tensor, positions: Sequence[int] | Tensor) -> Tensor:
    """One head (T, d) at the positions."""
    assert layer.rotary is not None
    return layer.rotary(torch.as_tensor(positions), one[None, :, None])[0][0, :, 0]


def weights(layer: CausalAttention, x: Tensor) -> Tensor:
    """Full causal attention (H, T, T) of x (1, T, dim)."""
    q, k, _ = heads(layer, x)
    steps = torch.arange(x.shape[1])
    logits = torch.stack([turned(layer, a, steps) @ turned(layer, b, steps).T for a, b in zip(q, k, strict=True)])
    return (logits / layer.head_dim**0.5).masked_fill(steps > steps[:, None], -torch.inf).softmax(-1)


def output(layer: CausalAttention, mixed: Tensor) -> Tensor:
    """Of one token's heads (H, d)."""
    return layer.out_proj(mixed.flatten())


def kept(state: Any) -> list[set[int]]:
    """Positions that each head of the only row holds."""
    return [{p for p in row if p < 2**30} for row in state.position[0].tolist()]
