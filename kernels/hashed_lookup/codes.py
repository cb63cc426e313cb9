"""Which row of a table a part of the input chooses, and with what weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def codes(x: Tensor) -> Tensor:
    """Of (..., bits) the number whose binary digits are its signs, the first the most significant; 1 for 0 and above.

    Returns:
        (...), int64.
    """
    places = 2 ** torch.arange(x.shape[-1] - 1, -1, -1, device=x.device)
    return ((x >= 0) * places).sum(-1)


def weights(x: Tensor, temperature: float, scaled: bool) -> Tensor:
    """p of z = x / temperature (..., bits): of its signs among all, the softmax of s . z over all sign vectors s at
    s = sign(z); ``scaled`` by the sum of \\|z\\|."""
    sizes = x.abs() / temperature
    p = (-F.softplus(-2 * sizes)).sum(-1).exp()
    return sizes.sum(-1) * p if scaled else p


def slopes(x: Tensor, temperature: float, scaled: bool) -> Tensor:
    """Derivatives of the weights after x, (..., bits)."""
    sizes = x.abs() / temperature
    along = 2 * torch.sigmoid(-2 * sizes)  # of the logarithm of p
    if scaled:
        along = 1 + sizes.sum(-1, keepdim=True) * along
    return x.sign() * along * weights(x, temperature, False)[..., None] / temperature
