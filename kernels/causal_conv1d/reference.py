"""Causal depthwise convolution over explicit windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, starts: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """x (B, T, D), weight (D, W), state (B, W - 1, D), starts (B, T) -> output (B, T, D), next state."""
    width = weight.shape[1]
    history = torch.cat([state, x], dim=1)
    if starts is None:
        windows, final = history.unfold(1, width, 1), history[:, history.shape[1] - width + 1 :]
    else:
        index = F.pad(starts.cumsum(1), (width - 1, 0))  # which sequence a token belongs to; the state's is 0
        same = index.unfold(1, width, 1) == index[:, width - 1 :, None]
        windows = history.unfold(1, width, 1) * same[:, :, None]
        final = (history * (index == index[:, -1:])[..., None])[:, history.shape[1] - width + 1 :]
    output = (windows * weight).sum(-1)
    output = output if bias is None else output + bias
    return F.silu(output) if silu else output, final
