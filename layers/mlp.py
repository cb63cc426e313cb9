"""Feed-forward layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """y = W2 (silu(W1 x) * W3 x), without biases unless ``bias``; ``act`` is a function in silu's place.

    Paper: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202.
    """

    def __init__(self, dim: int, hidden_dim: int, act: Callable[[Tensor], Tensor] = F.silu, bias: bool = False):
        super().__init__()
        self.act = act
        self.w1 = nn.Linear(dim, hidden_dim, bias=bias)
        self.w3 = nn.Linear(dim, hidden_dim, bias=bias)
        self.w2 = nn.Linear(hidden_dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        return self.w2(self.act(self.w1(x)) * self.w3(x))


def clamped_swiglu(gate: Tensor, up: Tensor, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    r"""(u + 1) g sigmoid(alpha g) with g the gate, at most ``limit``, and u the other half, within +-``limit``.

    Source: OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", arXiv 2508.10925, section 2.1, and the published code.
    """
    gate = gate.clamp(max=limit)
    return (up.clamp(-limit, limit) + 1) * gate * (alpha * gate).sigmoid()


class SquaredReLU(nn.Module):
    """y = W2 relu(W1 x)^2, without biases.

    Paper: So et al., "Primer", arXiv 2109.08668.
    """

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        return self.w2(F.relu(self.w1(x)).square())


class QuickGELU(nn.Module):
    """y = x sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """x (...) -> (...)."""
        return x * torch.sigmoid(1.702 * x)


class Mlp(nn.Module):
    """y = W2 gelu(W1 x), with biases: the feed-forward layer of ViT; ``act`` makes another activation."""

    def __init__(self, dim: int, hidden_dim: int, drop_rate: float = 0.0, act: Callable[[], nn.Module] = nn.GELU):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = act()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
