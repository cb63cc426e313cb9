"""Attention between the agents of a scene, which have a place and a heading."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.rope import rope

Tables = tuple[Tensor, Tensor]  # cos and sin (B, N, pairs)


class HeadByHead(nn.Module):
    """The first half of the heads turns by the places, the other by the headings.

    One of the two ways of "DRoPE", arXiv 2503.15029; which heads turn by what is ours.
    """

    def __init__(self, head_dim: int, num_heads: int):
        super().__init__()
        if num_heads % 2 or head_dim % 4:
            raise ValueError(
                "head-by-head: half of the heads turns by the place, in pairs for x and for y: num_heads must be even "
                f"and head_dim divisible by 4, got {num_heads} and {head_dim}"
            )
        self.dim = head_dim  # channels of a head that turn by one of them

    def forward(self, x: Tensor, place: Tables, heading: Tables) -> Tensor:
        """x (B, N, H, d) turned by tables of d / 2 pairs."""
        by_place, by_heading = x.chunk(2, dim=2)
        return torch.cat([rope(by_place, *place), rope(by_heading, *heading)], dim=2)


class IntraHead(nn.Module):
    """In each head the first half of the pairs turns by the places, the other by the headings.

    The other way of "DRoPE", arXiv 2503.15029; which channels turn by what is ours.
    """

    def __init__(self, head_dim: int, num_heads: int):
        super().__init__()
        if head_dim % 8:
            raise ValueError(
                "intra-head: half of a head's pairs turns by the place, in pairs for x and for y: head_dim must be "
                f"divisible by 8, got {head_dim}"
            )
        self.dim = head_dim // 2

    def forward(self, x: Tensor, place: Tables, heading: Tables) -> Tensor:
        """x (B, N, H, d) turned by tables of d / 4 pairs each."""
        cos, sin = (torch.cat(pair, dim=-1) for pair in zip(place, heading, strict=True))
        return rope(x, cos, sin)


class AgentAttention(nn.Module):
    r"""Softmax attention of every agent to all, by what they are, where they are and where they head.

    .. math::
        y_i = W_o \sum_j \mathrm{softmax}_j\big((R_i q_i)^\top R_j k_j / \sqrt d\big) v_j

    R turns by place and heading; values are not turned. It needs memory for N agents, not for N^2 relations.

    Args:
        dim: model width.
        num_heads: heads.
        turn: how place and heading share the heads' channels.

    Raises:
        ValueError: when num_heads does not divide dim.

    Paper: Zhao et al., "DRoPE: Directional Rotary Position Embedding for Efficient Agent Interaction Modeling", arXiv
        2503.15029.
    """

    def __init__(self, dim: int, num_heads: int, turn: nn.Module):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide dim: got dim {dim}, num_heads {num_heads}")
        self.num_heads = num_heads
        self.turn = turn
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, scene: tuple[Tables, Tables]) -> Tensor:
        """x (B, N, dim), and the tables of places and headings -> (B, N, dim)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)  # (B, N, H, d)
        q, k, v = (heads.transpose(1, 2) for heads in (self.turn(q, *scene), self.turn(k, *scene), v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
