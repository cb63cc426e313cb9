"""Which tokens later layers need: predictors that are learnt, by a hard choice whose gradient is a soft one's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.options import require_at_least


class PredictorBlock(nn.Module):
    """A pre-norm transformer block over a set of tokens: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, num_heads: int, hidden_dim: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, N, dim), mask (B, N), False at what is no token -> (B, N, dim)."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None])
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class ImagePredictor(nn.Module):
    r"""Log-probabilities of keeping and of dropping each token of an image, which sees the others.

    .. math:: z = \mathrm{blocks}(\mathrm{gelu}(W \, \mathrm{norm}(x))), \quad
        p_j = \mathrm{logsoftmax}(\mathrm{mlp}([z_j^{1:d/2}, \; \mathrm{mean}_i \, z_i^{d/2:d}]))

    with an MLP of widths d, d / 2, d / 4 and 2.

    Args:
        dim: of the residual stream that is read.
        width: d.
        num_heads: of the blocks.
        hidden_dim: of their MLPs.
        depth: blocks.

    Raises:
        ValueError: for a width that 4 or the heads do not divide.

    Paper: Huang et al., "Dynamic-LLaVA", arXiv 2412.00876; sizes of the authors' code.
    """

    def __init__(self, dim: int, width: int = 512, num_heads: int = 8, hidden_dim: int = 2048, depth: int = 2):
        super().__init__()
        require_at_least(1, width=width, num_heads=num_heads, hidden_dim=hidden_dim)
        require_at_least(0, depth=depth)
        if width % 4 or width % num_heads:
            raise ValueError(f"4 and num_heads must divide width, got num_heads {num_heads} and width {width}")
        self.entry = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width), nn.GELU())
        self.blocks = nn.ModuleList(PredictorBlock(width, num_heads, hidden_dim) for _ in range(depth))
        self.head = narrowing(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, N, dim), mask (B, N), False at what is no token -> (B, N, 2)."""
        z = self.entry(x)
        for block in self.blocks:
            z = block(z, mask)
        own, shared = z.chunk(2, -1)
        if mask is None:
            mean = shared.mean(1, keepdim=True)
        else:
            count = mask.sum(1).clamp(min=1)[:, None, None]
            mean = shared.masked_fill(~mask[..., None], 0).sum(1, keepdim=True) / count
        return self.head(torch.cat([own, mean.expand_as(shared)], -1)).log_softmax(-1)


class TextPredictor(nn.Module):
    """Log-probabilities of keeping and of dropping each token by itself: a norm, and an MLP of widths d to 2.

    Args:
        dim: of the residual stream that is read.
        width: d.

    Raises:
        ValueError: for a width that 4 does not divide.

    Paper: Huang et al., "Dynamic-LLaVA", arXiv 2412.00876; sizes of the authors' code.
    """

    def __init__(self, dim: int, width: int = 512):
        super().__init__()
        require_at_least(1, width=width)
        if width % 4:
            raise ValueError(f"4 must divide width, got {width}")
        self.entry = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width), nn.GELU())
        self.head = narrowing(width)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., 2)."""
        return self.head(self.entry(x)).log_softmax(-1)


def narrowing(width: int) -> nn.Sequential:
    """The MLP from ``width`` to two numbers, halving twice."""
    return nn.Sequential(
        nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width // 4), nn.GELU(),
        nn.Linear(width // 4, 2),
    )  # fmt: skip


def drawn(log_probs: Tensor, temperature: float) -> Tensor:
    r"""Whether to keep, drawn of (..., 2): 0 or 1 (...), with the gradient of

    .. math:: \mathrm{softmax}((\log p + g) / \tau)_1, \quad g \sim \mathrm{Gumbel}.

    Paper: Jang et al., "Categorical Reparameterization with Gumbel-Softmax", arXiv 1611.01144 (straight-through).
    """
    return F.gumbel_softmax(log_probs, tau=temperature, hard=True)[..., 0]
