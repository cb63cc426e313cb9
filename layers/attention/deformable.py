"""Deformable attention in images, at points of space: it learns where to read, and weighs what it reads by depth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.kernels import deformable_attention_3d
from zoo.layers.options import require_at_least


class DeformableAttention(nn.Module):
    r"""Queries read images at anchors moved by learned offsets, in space or on the plane.

    .. math::
        y_q = \sum_{l, p} a_{qlp} \, V_l (r_{qp} + \Delta_{qlp} / (W_l, H_l, D_l)), \quad
        a_q = \mathrm{softmax}_{l, p}(q W_a), \quad \Delta_q = q W_\Delta

    for each head, over levels l and points p, with the Z anchors of a query taken in turn as r; V(u, v, d) are the
    projected features times their depth (`deformable_attention_3d`), or with ``lift`` False the features alone: 2D
    deformable attention.

    Args:
        dim: model width.
        num_heads: which must divide it.
        num_points: p, of a head and level, a multiple of the anchors.
        num_levels: l.
        lift: read in space.
        project: end with a linear layer.

    Raises:
        ValueError: for sizes below 1 or heads that do not divide dim.

    Paper: Li et al., "DFA3D", arXiv 2307.12972; offsets, weights and initial values of the authors' code.
    """

    def __init__(
        self, dim: int, num_heads: int, num_points: int, num_levels: int = 1, lift: bool = True, project: bool = True
    ):
        super().__init__()
        require_at_least(1, dim=dim, num_heads=num_heads, num_points=num_points, num_levels=num_levels)
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim, got num_heads {num_heads} and dim {dim}")
        self.shape = (num_heads, num_levels, num_points)
        count = num_heads * num_levels * num_points
        self.offsets = nn.Linear(dim, 2 * count)
        self.depth_offsets = nn.Linear(dim, count) if lift else None
        self.weights, self.value = nn.Linear(dim, count), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim) if project else nn.Identity()
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Every head looks another way, every further point further; all points count alike."""
        heads, levels, points = self.shape
        angle = 2 * math.pi * torch.arange(heads) / heads
        way = torch.stack([angle.cos(), angle.sin()], -1)
        step = torch.arange(1.0, points + 1)[:, None]
        plane = (way / way.abs().amax(1, keepdim=True))[:, None, None] * step  # (heads, 1, points, 2)
        starts = [(self.offsets, plane.expand(-1, levels, -1, -1)), (self.weights, torch.zeros(()))]
        if self.depth_offsets is not None:
            away = (way.sum(1) / 2)[:, None, None] * step[:, 0]
            starts.append((self.depth_offsets, away.expand(-1, levels, -1)))
        for layer, bias in starts:
            nn.init.zeros_(layer.weight)
            layer.bias.copy_(bias.flatten() if bias.dim() else bias)
        for layer in (self.value, self.out):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(
        self, queries: Tensor, anchors: Tensor, features: Sequence[Tensor], depths: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Read images.

        Args:
            queries: (B, Q, dim).
            anchors: (B, Q, Z, 3) of u, v, d between 0 and 1 across image and depths, or (B, Q, Z, 2) without ``lift``.
            features: of each level (B, H, W, dim).
            depths: of each level (B, H, W, D), with ``lift``.

        Returns:
            (B, Q, dim).

        Raises:
            ValueError: for another number of levels, coordinates or anchors, or depths where none are read.
        """
        heads, levels, points = self.shape
        axes = 2 if self.depth_offsets is None else 3
        given = -1 if depths is None else len(depths)
        if len(features) != levels or given != (-1 if axes == 2 else levels):
            raise ValueError(
                f"features, and with lift depths, must be lists of {levels} levels, got {len(features)} and "
                f"{'none' if depths is None else given}"
            )
        if anchors.shape[-1] != axes or points % anchors.shape[-2]:
            raise ValueError(
                f"anchors must have {axes} coordinates, and as many of them as divide {points} points, got "
                f"{tuple(anchors.shape)}"
            )
        wide = torch.promote_types(queries.dtype, torch.float32)
        offsets = self.offsets(queries).unflatten(-1, (*self.shape, 2))  # (B, Q, heads, levels, points, 2)
        if self.depth_offsets is not None:
            offsets = torch.cat([offsets, self.depth_offsets(queries).unflatten(-1, (*self.shape, 1))], -1)
        weights = self.weights(queries).unflatten(-1, (heads, levels * points)).to(wide).softmax(-1)
        weights = weights.unflatten(-1, (levels, points))
        repeated = anchors[:, :, None].expand(-1, -1, heads, -1, -1).repeat(1, 1, 1, points // anchors.shape[-2], 1)
        y = queries.new_zeros((), dtype=wide)
        for level, image in enumerate(features):
            depth = image.new_ones(*image.shape[:-1], 1) if depths is None else depths[level]
            sizes = [image.shape[2], image.shape[1], depth.shape[3]][:axes]
            at = repeated.to(wide) + offsets[:, :, :, level].to(wide) / queries.new_tensor(sizes, dtype=wide)
            at = at if axes == 3 else torch.cat([at, torch.full_like(at[..., :1], 0.5)], -1)
            value = self.value(image).unflatten(-1, (heads, -1))
            y = y + deformable_attention_3d(value, depth, at, weights[:, :, :, level])
        return self.out(y.flatten(2).to(queries.dtype))


class CameraAttention(nn.Module):
    r"""What each query sees in the cameras that see it: their mean.

    .. math:: y_q = W \frac{1}{|C_q|} \sum_{c \in C_q} \mathrm{DeformableAttention}_c(q) + b

    Args:
        dim, num_heads, num_points, num_levels, lift: of `DeformableAttention`.

    Paper: Li et al., "BEVFormer", arXiv 2203.17270; in space: Li et al., "DFA3D", arXiv 2307.12972.
    """

    def __init__(self, dim: int, num_heads: int, num_points: int, num_levels: int = 1, lift: bool = True):
        super().__init__()
        self.attention = DeformableAttention(dim, num_heads, num_points, num_levels, lift, project=False)
        self.out = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        queries: Tensor,
        seen: Tensor,
        anchors: Tensor,
        features: Sequence[Tensor],
        depths: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Each camera answers the queries that it sees.

        Args:
            queries: (B, Q, dim).
            seen: (V, L) int64, of each camera the queries that it sees; -1 behind them, where others see more.
            anchors: (V, L, Z, 3) of these, or (V, L, Z, 2) without ``lift``.
            features: of each level (B, V, H, W, dim).
            depths: of each level (B, V, H, W, D), with ``lift``.

        Returns:
            (B, Q, dim).
        """
        (batch, count, dim), (cameras, longest) = queries.shape, seen.shape
        asked = queries[:, seen.clamp(min=0)].flatten(0, 1)  # (B V, L, dim)
        at = anchors[None].expand(batch, -1, -1, -1, -1).flatten(0, 1)
        images = [image.flatten(0, 1) for image in features]
        found = self.attention(asked, at, images, None if depths is None else [d.flatten(0, 1) for d in depths])
        place = torch.where(seen < 0, count, seen).flatten()  # one more for what is none
        found = found.view(batch, cameras * longest, dim)
        total = queries.new_zeros(batch, count + 1, dim).index_add(1, place, found)[:, :-1]
        times = queries.new_zeros(count + 1).index_add(0, place, queries.new_ones(len(place)))
        return self.out(total / times[:-1, None].clamp(min=1))
