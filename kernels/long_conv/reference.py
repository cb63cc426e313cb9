"""The long convolution by the convolution theorem, as it is usually written."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(u: Tensor, kernel: Tensor, D: Tensor | None, gate: Tensor | None, circular: bool) -> Tensor:
    """Differentiable by autograd; shapes as in ``long_conv``, of one dtype (float32 or float64)."""
    length = u.shape[1]
    n = length if circular else length + kernel.shape[1]
    y = torch.fft.irfft(torch.fft.rfft(u.mT, n) * torch.fft.rfft(kernel, n), n)[..., :length].mT
    y = y if D is None else y + D * u
    return y if gate is None else gate * y
