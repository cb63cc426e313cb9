"""Causal depthwise convolution as one fused multiply-add a tap over the shifted input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, starts: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """Same arguments and results as the reference."""
    history, keep = _history(x, weight, state, starts)
    output = _convolve(history, keep, x, weight, bias)
    final = history[:, x.shape[1] :]
    return F.silu(output, inplace=True) if silu else output, final * keep[-1] if keep else final.clone()


def backward(dy, dstate, x, weight, bias, state, starts, silu) -> tuple[Tensor, ...]:
    """Gradients of x, weight, bias (zeros of (D,) when there is none) and the initial state."""
    history, keep = _history(x, weight, state, starts)
    if silu:
        dy = torch.ops.aten.silu_backward(dy, _convolve(history, keep, x, weight, bias))
    dhistory, dweight = torch.zeros_like(history), torch.empty_like(weight)
    for tap in range(weight.shape[1]):
        dweight[:, tap] = (dy * _tap(history, tap, x, keep)).sum((0, 1))
        dtap = dy if keep is None else dy * keep[tap]
        dhistory[:, tap : tap + x.shape[1]].addcmul_(dtap, weight[:, tap])
    dhistory[:, x.shape[1] :] += dstate if keep is None else dstate * keep[-1]
    before = state.shape[1]
    return dhistory[:, before:].clone(), dweight, dy.sum((0, 1)), dhistory[:, :before]


def _convolve(history, keep, x, weight, bias) -> Tensor:
    output = torch.zeros_like(x) if bias is None else bias.expand_as(x).clone(memory_format=torch.contiguous_format)
    for tap in range(weight.shape[1]):
        output.addcmul_(_tap(history, tap, x, keep), weight[:, tap])
    return output


def _tap(history: Tensor, tap: int, x: Tensor, keep: list[Tensor] | None) -> Tensor:
    shifted = history[:, tap : tap + x.shape[1]]
    return shifted if keep is None else shifted * keep[tap]


def _history(x, weight, state, starts) -> tuple[Tensor, list[Tensor] | None]:
    """State and input in one tensor, and for packed input which tokens (B, T, 1) each tap may read.

    The last entry of the list says which of the W - 1 newest inputs belong to the last token's sequence.
    """
    history = torch.cat([state, x], dim=1)
    if starts is None:
        return history, None
    width, length = weight.shape[1], x.shape[1]
    index = F.pad(starts.cumsum(1), (width - 1, 0))
    keep = [(index[:, tap : tap + length] == index[:, width - 1 :])[..., None] for tap in range(width)]
    return history, [*keep, (index[:, length:] == index[:, -1:])[..., None]]
