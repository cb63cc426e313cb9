"""Transformer blocks that a vector of an image scales, shifts and gates: of its class, its time or both.

Paper: Peebles and Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748 (adaLN-Zero).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.attention.reordered import DenseProduct


@dataclass
class Past:
    """Keys and values (B, heads, T, head_dim) that attention has seen; None before the first.

    A subclass may keep fewer when a scale has ended, of those that all later queries would see.
    """

    key: Tensor | None = None
    value: Tensor | None = None
    peak: int = 0
    """Bytes that both have taken at most."""

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The new ones behind those there are."""
        if self.key is not None and self.value is not None:
            key, value = torch.cat([self.key, key], 2), torch.cat([self.value, value], 2)
        self.key, self.value = key, value
        self.peak = max(self.peak, self.nbytes)
        return key, value

    def look(self, query: Tensor) -> None:
        """The queries (B, heads, T, head_dim) of the newest tokens, once their keys are held."""

    def end(self, scale: int) -> None:
        """All tokens of this scale have been read."""

    @property
    def nbytes(self) -> int:
        """Of both."""
        return 0 if self.key is None else 2 * self.key.nbytes


class Attention(nn.Module):
    """Attention over all that the mask allows, and over the past where there is one."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.product: nn.Module = DenseProduct()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None, past: Past | None = None) -> Tensor:
        """x (B, T, dim), mask (T, S) bool -> (B, T, dim)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if past is not None:
            k, v = past.extend(k, v)
            past.look(q)
            mask = mask if mask is None else mask[:, -k.shape[2] :]  # what a past let go of, every query saw
        y = self.product(q, k, v, mask)  # (B, H, T, head_dim)
        return self.proj(y.transpose(1, 2).flatten(2))


class AdaptiveBlock(nn.Module):
    r"""Attention and an MLP, both between a norm and a gate that the vector c sets.

    .. math:: x = x + g_1 \, \mathrm{attention}((1 + s_1) \, \mathrm{norm}(x) + b_1), \quad
        x = x + g_2 \, \mathrm{mlp}((1 + s_2) \, \mathrm{norm}(x) + b_2)

    with all of s, b and g a linear map of silu(c) that starts at 0: a new block is the identity.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        hidden_dim = int(dim * mlp_ratio)
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False) for _ in range(2))
        self.attn = Attention(dim, num_heads)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden_dim), nn.GELU("tanh"), nn.Linear(hidden_dim, dim))
        self.modulation = closed(nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, c: Tensor, mask: Tensor | None = None, past: Past | None = None) -> Tensor:
        """x (B, T, dim), c (B, dim) -> (B, T, dim)."""
        b1, s1, g1, b2, s2, g2 = self.modulation(F.silu(c))[:, None].chunk(6, -1)
        x = x + g1 * self.attn((1 + s1) * self.norm1(x) + b1, mask, past)
        return x + g2 * self.mlp((1 + s2) * self.norm2(x) + b2)


class AdaptiveHead(nn.Module):
    """A linear map of what a norm makes of x, scaled and shifted by the vector c; it starts at 0."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation = closed(nn.Linear(dim, 2 * dim))
        self.linear = closed(nn.Linear(dim, out_dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, T, dim), c (B, dim) -> (B, T, out_dim)."""
        shift, scale = self.modulation(F.silu(c))[:, None].chunk(2, -1)
        return self.linear((1 + scale) * self.norm(x) + shift)


def closed(linear: nn.Linear) -> nn.Linear:
    """The layer with zeros for weights."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
