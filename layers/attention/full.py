"""Multi-head attention of every token to every token."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    r"""Every head's mean of all tokens' values, with one qkv projection; parameter names of timm's ViT.

    .. math:: y = W_o \, \mathrm{softmax}(q k^T / \sqrt{d}) \, v, \quad [q, k, v] = W x

    Raises:
        ValueError: when num_heads does not divide dim.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, drop_rate: float = 0.0):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide dim: got dim {dim}, num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, dim) -> (B, N, dim)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, N, d)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(y))
