"""3D deformable attention as its definition: the volume in full, and trilinear interpolation in it."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from zoo.kernels.deformable_attention_3d.corners import ends


def forward(value: Tensor, depth: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """value (B, H, W, N, C), depth (B, H, W, D), locations (B, Q, N, P, 3), weights (B, Q, N, P) -> (B, Q, N, C)."""
    batch, height, width, heads, dim = value.shape
    bins = depth.shape[3]
    volume = value[:, :, :, None] * depth[..., None, None]  # (B, H, W, D, N, C)
    image = torch.arange(batch, device=value.device)[:, None, None, None]
    head = torch.arange(heads, device=value.device)[:, None]
    sampled = value.new_zeros(())
    corners = (ends(x, size) for x, size in zip(locations.unbind(-1), (width, height, bins), strict=True))
    for (i, along_u), (j, along_v), (k, along_d) in product(*corners):
        row = (((image * height + j) * width + i) * bins + k) * heads + head  # (B, Q, N, P)
        read = volume.reshape(-1, dim).index_select(0, row.flatten()).view(*row.shape, dim)
        sampled = sampled + (along_u * along_v * along_d)[..., None] * read
    return (weights[..., None] * sampled).sum(3)
