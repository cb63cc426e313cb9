"""Causal attention that reads and writes a few groups of the hidden dimension a token (MoHD)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from zoo.layers.attention.causal import CausalAttention
from zoo.layers.attention.keys import Place
from zoo.layers.attention.state import KeyValueState
from zoo.layers.lowrank.monarch import Monarch
from zoo.layers.moe.sub_dimensions import IntoLinear, OutOfLinear, SubDimensionRouter


class SubDimensionAttention(CausalAttention):
    r"""Attention whose projections see the groups of the hidden dimension that a token uses.

    .. math::
        q, k, v = W \hat x, \quad y = F \, W_o \, \mathrm{attention}(q, k, v)

    with :math:`\hat x` of the router, and the grouped fusion F, a ``Monarch`` over the groups. Keys and values, and so
    caches, are those of ``CausalAttention``.

    Args:
        dim: D.
        num_heads: query heads.
        router: chooses the groups.
        options: of ``CausalAttention``; without biases.

    Paper: Chen et al., "Mixture of Hidden-Dimensions Transformer", arXiv 2412.05644.
    """

    def __init__(self, dim: int, num_heads: int, router: SubDimensionRouter, **options: Any):
        super().__init__(dim, num_heads, **options)
        self.router = router
        self.widths = [heads * self.head_dim for heads in (num_heads, self.num_kv_heads, self.num_kv_heads)]
        self.in_proj = IntoLinear(dim, sum(self.widths), router)
        self.out_proj = OutOfLinear(num_heads * self.head_dim, dim, router)
        self.fusion = Monarch(dim, router.num_groups)

    def build_projections(self, dim: int, bias: bool) -> None:
        """None of ``CausalAttention``'s."""

    def forward(self, x: Tensor, state: KeyValueState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        place = Place.of(x, state, seq_idx)
        routed = self.router(x, None if seq_idx is None else seq_idx >= 0)
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in self.in_proj(routed).split(self.widths, dim=-1))
        q, k = self.rotated(place.position, q, k)  # (B, T, H, d)
        y = self.mix(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), place, state)
        return self.fusion(self.out_proj(y.transpose(1, 2).flatten(2), routed))
