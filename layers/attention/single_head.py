"""Single-head self-attention over a part of the channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.conv.conv_norm import ConvNorm


class SingleHeadAttention(nn.Module):
    r"""One head over the first ``partial_dim`` channels of a map; the other channels pass untouched.

    .. math:: [x_a, x_r] = x, \quad [q, k, v] = W_{qkv}\,\mathrm{norm}(x_a), \quad
              y = W_o\,\mathrm{relu}([\mathrm{softmax}(q^\top k / \sqrt{d}) v, x_r])

    Every position attends to all others; the norm is over all channels and positions of :math:`x_a` of an image.

    Args:
        dim: channels.
        partial_dim: channels that attend.
        qk_dim: d, channels of queries and keys.

    Raises:
        ValueError: for a partial_dim that is not below dim.

    Paper: Yun and Ro, "SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design", arXiv 2401.16456.
    """

    def __init__(self, dim: int, partial_dim: int, qk_dim: int = 16):
        super().__init__()
        if not 0 < partial_dim < dim:
            raise ValueError(f"partial_dim must be between 0 and dim, got partial_dim {partial_dim}, dim {dim}")
        self.parts = [partial_dim, dim - partial_dim]
        self.qkv_dims = [qk_dim, qk_dim, partial_dim]
        self.scale = qk_dim**-0.5
        self.norm = nn.GroupNorm(1, partial_dim)
        self.qkv = ConvNorm(partial_dim, sum(self.qkv_dims))
        self.proj = nn.Sequential(nn.ReLU(inplace=True), ConvNorm(dim, dim, gamma=0.0))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, H, W) -> (B, dim, H, W)."""
        attending, rest = x.split(self.parts, dim=1)
        q, k, v = self.qkv(self.norm(attending)).flatten(2).split(self.qkv_dims, dim=1)  # (B, d, N)
        attention = (q.mT @ k * self.scale).softmax(-1)  # (B, N, N)
        attended = (v @ attention.mT).view_as(attending)
        return self.proj(torch.cat([attended, rest], dim=1))
