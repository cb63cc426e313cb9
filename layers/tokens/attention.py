"""Attention to tokens of different size, and to averages of neighbours where there are too many."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SizedAttention(nn.Module):
    r"""Softmax attention in which a token that stands for s others counts s times.

    .. math::
        y = W_o \, \mathrm{softmax}\big(q \bar k^\top / \sqrt d + \log \bar s\big) \bar v

    Of up to ``max_keys`` tokens the bars are nothing: attention is exact. Of more, each run of ceil(T / max_keys)
    neighbours has one key and one value, the means over the run, and their size is its sum; so time and memory are
    linear in T. A row's runs are those that it has without its padding.

    Args:
        dim: model width.
        num_heads: heads.
        max_keys: keys there are at most; None for all.

    Raises:
        ValueError: when num_heads does not divide dim, or for no keys.

    Paper: Bolya et al., "Token Merging", arXiv 2210.09461, equation 1 (the sizes).
    """

    def __init__(self, dim: int, num_heads: int, max_keys: int | None = None):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide dim: got dim {dim}, num_heads {num_heads}")
        if max_keys is not None and max_keys < 1:
            raise ValueError(f"max_keys must be at least 1, or None for all of them, got {max_keys}")
        self.num_heads, self.max_keys = num_heads, max_keys
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, dim), size (B, T), 0 at padding -> (B, T, dim), and the keys (B, T, d), means over the heads."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, d)
        keys, values, sizes = self.averaged(k, v, size)
        bias = torch.where(sizes > 0, sizes.clamp(min=1).log(), -1e4).to(q.dtype)[:, None, None]
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=bias)
        return self.proj(y.transpose(1, 2).flatten(2)), k.mean(1)

    def averaged(self, k: Tensor, v: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values (B, H, T, d) as attention sees them: means over runs of neighbours; and their sizes."""
        length = size.shape[1]
        if self.max_keys is None or length <= self.max_keys:
            return k, v, size
        places = torch.arange(length, device=size.device)
        count = (size > 0).sum(1, keepdim=True)
        run = (count + self.max_keys - 1).div(self.max_keys, rounding_mode="floor").clamp(min=1)  # tokens in a run
        index = places.div(run, rounding_mode="floor").clamp(max=self.max_keys - 1)  # (B, T); padding has size 0
        total = size.new_zeros(len(size), self.max_keys).scatter_add(1, index, size)

        def mean(heads: Tensor) -> Tensor:
            weighted = heads * size[:, None, :, None]
            empty = weighted.new_zeros(*heads.shape[:2], self.max_keys or 0, heads.shape[3])
            runs = empty.scatter_add(2, index[:, None, :, None].expand_as(heads), weighted)
            return (runs / total.clamp(min=1)[:, None, :, None]).to(heads.dtype)

        return mean(k), mean(v), total
