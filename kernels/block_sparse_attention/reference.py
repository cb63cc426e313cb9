"""Block-sparse attention as one masked softmax over all keys."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(
    q: Tensor, k: Tensor, v: Tensor, block_mask: Tensor, block_size: int, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (B, T, H, V) and logarithm of the softmax's sum (B, H, T), differentiable by autograd.

    A query that sees no key has the output 0 and the logarithm infinity, so that exp(score - logarithm) is its weight.
    """
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    scores = scale * torch.einsum("bthk,bshk->bhts", q, k)
    seen = visible(block_mask, block_size, q.shape[1], k.shape[1], causal)
    none = ~seen.any(-1, keepdim=True)
    scores = scores.masked_fill(~seen, -torch.inf).masked_fill(none, 0.0)
    total = scores.logsumexp(-1, keepdim=True).masked_fill(none, torch.inf)
    weights = scores.softmax(-1).masked_fill(none, 0.0)  # its gradient has one subtraction, a quotient's would have two
    return torch.einsum("bhts,bshv->bthv", weights, v), total[..., 0]


def visible(block_mask: Tensor, block_size: int, length: int, keys: int, causal: bool) -> Tensor:
    """Boolean (B or 1, H or 1, T, S): which keys each query sees."""
    seen = block_mask.repeat_interleave(block_size, dim=-2).repeat_interleave(block_size, dim=-1)[..., :length, :keys]
    return seen.tril(keys - length) if causal else seen
