"""The same without the volume: of each pixel around a point, its features times its depth at the point.

Of the eight corners of a cell four and four share a pixel, whose features are the same at all depths: depth is
interpolated by itself there, and B H W (N C + D) numbers are read instead of B H W D N C.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from zoo.kernels.deformable_attention_3d.corners import ends


def forward(value: Tensor, depth: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Same arguments and results as the reference."""
    batch, height, width, heads, dim = value.shape
    bins = depth.shape[3]
    image = torch.arange(batch, device=value.device)[:, None, None, None]
    head = torch.arange(heads, device=value.device)[:, None]
    u, v, d = locations.unbind(-1)
    levels = ends(d, bins)
    y = value.new_zeros(())
    for (i, along_u), (j, along_v) in product(ends(u, width), ends(v, height)):
        pixel = (image * height + j) * width + i  # (B, Q, N, P)
        there = sum(share * _read(depth.reshape(-1), pixel * bins + k) for k, share in levels)
        features = _read(value.reshape(-1, dim), pixel * heads + head)
        y = y + ((weights * along_u * along_v * there)[..., None] * features).sum(3)
    return y


def _read(rows: Tensor, index: Tensor) -> Tensor:
    return rows.index_select(0, index.flatten()).view(*index.shape, *rows.shape[1:])
