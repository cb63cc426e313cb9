"""One vector a pillar: its voxels of all heights, weighed by attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.norm import LayerNorm
from zoo.layers.options import require_at_least
from zoo.layers.voxels.sites import Sites, Voxels, distinct, inside


class PillarPool(nn.Module):
    r"""Attention over the heights of a pillar, asked by the largest values of its voxels.

    .. math::
        q = \max_z x_z, \quad y = \mathrm{LN}(q + \mathrm{MHA}(q, x + e, x))

    over the voxels that there are, e a vector learned for each height.

    Args:
        dim: channels.
        levels: heights that a pillar has at most.
        num_heads: which must divide dim.

    Raises:
        ValueError: for sizes below 1 or heads that do not divide dim.

    Paper: He et al., "ScatterFormer", arXiv 2401.00912; the form of the authors' code (AttnPillarPool).
    """

    def __init__(self, dim: int, levels: int, num_heads: int):
        super().__init__()
        require_at_least(1, dim=dim, levels=levels, num_heads=num_heads)
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim, got num_heads {num_heads} and dim {dim}")
        self.levels, self.num_heads = levels, num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.height = nn.Parameter(0.01 * torch.randn(levels, dim))
        self.norm = LayerNorm(dim)

    def forward(self, x: Tensor, sites: Sites) -> Voxels:
        """x (M, dim) at the places -> of each pillar (P, dim), on a grid of one height.

        Raises:
            ValueError: for a grid of more heights.
        """
        (clouds, levels, *ground), place = sites.shape, sites.coordinates
        if levels > self.levels:
            raise ValueError(f"a pillar has {self.levels} heights at most, got a grid of {levels}")
        level = place[:, 1]
        flat = torch.cat([place[:, :1], torch.zeros_like(place[:, :1]), place[:, 2:]], 1)
        shape, valid = (clouds, 1, ground[0], ground[1]), sites.valid
        pillars = distinct(flat, shape, inside(flat, shape) if valid is None else valid)
        count = len(pillars) * self.levels
        slot = pillars.find(flat) * self.levels + level
        slot = slot if valid is None else torch.where(valid, slot, count)  # one more for what is no voxel
        slots = x.new_zeros(count + 1, x.shape[1]).index_add(0, slot, x)[:-1]
        filled = torch.zeros(count + 1, dtype=torch.bool, device=x.device).index_fill(0, slot, True)[:-1]
        slots, filled = slots.view(len(pillars), self.levels, x.shape[1]), filled.view(len(pillars), 1, self.levels)
        if pillars.valid is not None:
            filled = filled | ~pillars.valid[:, None, None]
        largest = slots.masked_fill(~filled.mT, -torch.inf).amax(1)  # (P, dim)
        return Voxels(self.norm(largest + self._attend(largest, slots, filled)), pillars)

    def _attend(self, query: Tensor, slots: Tensor, filled: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (P, H, 1 or levels, d)
            for part in (self.query(query[:, None]), self.key(slots + self.height), self.value(slots))
        )
        found = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=filled[:, None])
        return self.out(found.transpose(1, 2).flatten(1))
