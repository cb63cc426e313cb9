"""Attention within a sliding window as one masked softmax over all keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(
    q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, window: int, sinks: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (B, T, H, V) and logarithm of the softmax's sum (B, H, T), differentiable by autograd.

    ``first`` (B, T) is the position of the first key of each query's sequence, None where that is 0.
    """
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    scores = scale * torch.einsum("bthk,bshk->bhts", q, k)
    scores = scores.masked_fill(~visible(q.shape[1], k.shape[1], first, window, sinks, q.device), -torch.inf)
    return torch.einsum("bhts,bshv->bthv", scores.softmax(-1), v), scores.logsumexp(-1)


def step(q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, window: int, sinks: int, scale: float) -> Tensor:
    """One query (B, 1, H, K) over a cache of keys, read where it lies; the window begins inside it."""
    if (begin := k.shape[1] - window) > sinks:
        k, v = (torch.cat([x[:, :sinks], x[:, begin:]], 1) if sinks else x[:, begin:] for x in (k, v))
    else:
        begin = 0
    mask = None if first is None else (torch.arange(k.shape[1], device=k.device) + begin >= first)[:, None, None]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True).transpose(1, 2)


def visible(length: int, keys: int, first: Tensor | None, window: int, sinks: int, device: torch.device) -> Tensor:
    """Boolean (B or 1, 1, T, S): which keys each query sees."""
    query = torch.arange(keys - length, keys, device=device)[:, None]
    key = torch.arange(keys, device=device)
    seen = (key <= query) & ((key > query - window) | (key < sinks))
    return seen[None, None] if first is None else (seen & (key >= first[..., None]))[:, None]
