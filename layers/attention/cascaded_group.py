"""Cascaded group attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.conv.conv_norm import ConvNorm, depthwise


class CascadedGroupAttention(nn.Module):
    r"""Heads that each see their own channels of a map, and what the head before them found.

    .. math:: x'_h = x_h + y_{h-1}, \quad [q, k, v] = W_h x'_h, \quad
              y_h = \mathrm{softmax}(\mathrm{dw}_h(q)^\top k / \sqrt{d} + b_h)\, v, \quad
              y = W_o\,\mathrm{relu}([y_1, \ldots, y_H])

    with :math:`x_h` the h-th part of the channels, :math:`y_0 = 0`, :math:`\mathrm{dw}_h` a depthwise convolution and
    :math:`b_h` a learned bias by |row difference| and |column difference|. A map of ``window`` x ``window`` is attended
    whole; any other is padded with zeros, which are attended too, and cut into windows.

    Args:
        dim: channels.
        num_heads: H.
        window: side of a window.
        kernels: sizes of the convolutions, one a head.
        qk_dim: d, channels of a head's queries and keys.

    Raises:
        ValueError: when num_heads does not divide dim, or there are too few kernels.

    Paper: Liu et al., "EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention", arXiv
    2305.07027.
    """

    of_image_size = ("window", "bias_index")
    bias_index: Tensor

    def __init__(self, dim: int, num_heads: int, window: int, kernels: Sequence[int], qk_dim: int = 16):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide dim: got dim {dim}, num_heads {num_heads}")
        if len(kernels) < num_heads:
            raise ValueError(f"kernels must hold one size a head: got {tuple(kernels)} for {num_heads} heads")
        head_dim = dim // num_heads
        self.window, self.num_heads = window, num_heads
        self.qkv_dims = [qk_dim, qk_dim, head_dim]
        self.scale = qk_dim**-0.5
        self.qkvs = nn.ModuleList(ConvNorm(head_dim, sum(self.qkv_dims)) for _ in range(num_heads))
        self.dws = nn.ModuleList(depthwise(qk_dim, size) for size in kernels[:num_heads])
        self.proj = nn.Sequential(nn.ReLU(inplace=True), ConvNorm(dim, dim, gamma=0.0))
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window**2))
        self.register_buffer("bias_index", distance_index(window), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, H, W) -> (B, dim, H, W)."""
        height, width = x.shape[2:]
        return from_windows(self.attend(to_windows(x, self.window)), height, width)

    def attend(self, x: Tensor) -> Tensor:
        """One window, x (B, dim, window, window) -> (B, dim, window, window)."""
        biases = self.attention_biases[:, self.bias_index]  # (num_heads, N, N)
        parts = x.chunk(self.num_heads, dim=1)
        y, outputs = torch.zeros_like(parts[0]), []
        for head, (qkv, dw) in enumerate(zip(self.qkvs, self.dws, strict=True)):
            q, k, v = qkv(parts[head] + y).split(self.qkv_dims, dim=1)
            scores = (dw(q) * self.scale).flatten(2).mT @ k.flatten(2)  # (B, N, N)
            y = (v.flatten(2) @ (scores + biases[head]).softmax(-1).mT).view_as(v)
            outputs.append(y)
        return self.proj(torch.cat(outputs, dim=1))


def distance_index(window: int) -> Tensor:
    """(N, N) for the N positions of a window in raster order: window * |row difference| + |column difference|."""
    side = torch.arange(window)
    row, column = side.repeat_interleave(window), side.repeat(window)
    return window * (row[:, None] - row).abs() + (column[:, None] - column).abs()


@torch.fx.wrap
def to_windows(x: Tensor, window: int) -> Tensor:
    """(B, C, H, W) -> (B * windows, C, window, window), zeros below and to the right where the map ends."""
    height, width = x.shape[2:]
    if height == width == window:
        return x
    x = F.pad(x, (0, -width % window, 0, -height % window))
    x = x.unflatten(3, (-1, window)).unflatten(2, (-1, window))  # (B, C, rows, window, columns, window)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


@torch.fx.wrap
def from_windows(x: Tensor, height: int, width: int) -> Tensor:
    """The inverse of ``to_windows``, without what was added."""
    window = x.shape[2]
    if height == width == window:
        return x
    rows, columns = -(-height // window), -(-width // window)
    x = x.unflatten(0, (-1, rows, columns)).permute(0, 3, 1, 4, 2, 5)
    return x.flatten(4, 5).flatten(2, 3)[:, :, :height, :width]
