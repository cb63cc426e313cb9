"""Channel attention by squeeze and excitation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """y = x * sigmoid(W2 relu(W1 mean(x))), the mean over positions.

    Paper: Hu et al., "Squeeze-and-Excitation Networks", arXiv 1709.01507.
    """

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, H, W) -> (B, dim, H, W)."""
        squeezed = x.mean((2, 3), keepdim=True)
        return x * self.fc2(F.relu_(self.fc1(squeezed))).sigmoid()


class EffectiveSqueezeExcite(nn.Module):
    """y = x * hard_sigmoid(W mean(x)), with one full-width W and hard_sigmoid(u) = min(max(u + 3, 0), 6) / 6.

    Paper: Lee and Park, "CenterMask: Real-Time Anchor-Free Instance Segmentation", arXiv 1911.06667.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.fc = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, H, W) -> (B, dim, H, W)."""
        return x * F.hardsigmoid(self.fc(x.mean((2, 3), keepdim=True)))
