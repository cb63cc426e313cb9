"""Rotary embedding written straight into the result: one product and one fused multiply-add a half of the pairs."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Same arguments and results as the reference."""
    width, y = 2 * cos.shape[-1], torch.empty_like(x)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    (first, second), (y_first, y_second) = (_halves(t[..., :width], interleaved) for t in (x, y))
    torch.mul(first, cos, out=y_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=y_second).addcmul_(first, sin)
    y[..., width:] = x[..., width:]
    return y


def differentiable(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """The same for autograd, in the fewest calls: what counts for small inputs."""
    width, cos, sin = 2 * cos.shape[-1], cos.unsqueeze(-2), sin.unsqueeze(-2)
    first, second = _halves(x if width == x.shape[-1] else x[..., :width], interleaved)
    pair = torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)
    if interleaved:
        pair = (torch.stack(pair, dim=-1).flatten(-2),)
    return torch.cat(pair if width == x.shape[-1] else (*pair, x[..., width:]), dim=-1)


def _halves(x: Tensor, interleaved: bool) -> tuple[Tensor, ...]:
    return (x[..., ::2], x[..., 1::2]) if interleaved else x.split(x.shape[-1] // 2, dim=-1)
