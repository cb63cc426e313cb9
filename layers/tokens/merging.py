"""Token merging: similar tokens become one, which stands for all of them.

A token has a size, the number of tokens that it stands for; padding has size 0. Sizes are kept beside the tokens, so
that means over tokens and attention to them (``SizedAttention``) weigh each by what it stands for.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def tokens_left(length: int, rate: float) -> int:
    """Of ``length`` tokens, once a share ``rate`` of them has gone into others."""
    return length - math.floor(rate * length)


@torch.no_grad()
def match_pairs(keys: Tensor, size: Tensor, rate: float, window: int | None = None) -> Tensor:
    """Which token each one goes into: of every row's tokens a share ``rate`` into their most similar partner.

    Tokens at even places look for a partner among those at odd places, by the cosine of their keys; the most similar
    pairs are taken. So no token that receives another goes anywhere itself. Padding, which comes last, goes nowhere and
    receives nothing, and rows have as many pairs as they would have without it.

    Args:
        keys: (B, T, d), what is compared.
        size: (B, T), 0 at padding, float32 or wider.
        rate: share of the tokens, up to one half.
        window: partners are looked for among so many odd places on either side, in time linear in T; None: everywhere.

    Returns:
        (B, T) int64: the place of the partner, or a token's own.

    Raises:
        ValueError: for a rate or a window out of range.

    Paper: Bolya et al., "Token Merging: Your ViT But Faster", arXiv 2210.09461 (bipartite soft matching); Götz et al.,
        "Efficient Time Series Processing for Transformers and State-Space Models through Token Merging", arXiv
        2405.17951 (the window).
    """
    check(rate, window)
    length = keys.shape[1]
    own = torch.arange(length, device=keys.device).expand(size.shape)
    if length < 2 or not rate:
        return own
    unit = F.normalize(keys, dim=-1)
    even, odd = unit[:, ::2], unit[:, 1::2]
    similarity, partner = (_anywhere if window is None else _nearby)(even, odd, size[:, 1::2] > 0, window or 0)
    similarity = similarity.masked_fill(size[:, ::2] == 0, -math.inf)
    rank = similarity.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    taken = rank < ((size > 0).sum(1, keepdim=True).double() * rate).floor()
    going = torch.where(taken, 2 * partner + 1, own[:, ::2])
    pairs = [going[:, : odd.shape[1]], own[:, 1::2]]
    return torch.cat([torch.stack(pairs, dim=-1).flatten(1), going[:, odd.shape[1] :]], dim=1)


def _anywhere(even: Tensor, odd: Tensor, real: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Of each even token the best cosine (B, A), and which odd token has it."""
    similarity = (even @ odd.transpose(1, 2)).masked_fill(~real[:, None], -math.inf)
    best = similarity.max(-1)
    return best.values, best.indices


def _nearby(even: Tensor, odd: Tensor, real: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The same among ``window`` odd tokens on either side: one shifted product for each."""
    count, offsets = even.shape[1], range(-window, window)
    padding = (0, 0, window, window + count - odd.shape[1])
    odd, real = F.pad(odd, padding), F.pad(real, padding[2:])
    similarity = torch.stack(
        [
            (even * odd[:, window + by : window + by + count])
            .sum(-1)
            .masked_fill(~real[:, window + by : window + by + count], -math.inf)
            for by in offsets
        ],
        dim=-1,
    )
    best = similarity.max(-1)
    return best.values, best.indices - window + torch.arange(count, device=even.device)


def merge(x: Tensor, size: Tensor, target: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Means of what goes together, in the order of the tokens that receive.

    .. math:: x'_j = \\frac{\\sum_{i \\to j} s_i x_i}{\\sum_{i \\to j} s_i}, \\quad s'_j = \\sum_{i \\to j} s_i

    Args:
        x: tokens (B, T, D).
        size: (B, T), 0 at padding.
        target: (B, T), the place of the token that each goes into, or its own.
        length: tokens that are left, no fewer than there are in any row.

    Returns:
        (B, length, D) and their sizes (B, length), 0 at what is padding now, which comes last.
    """
    stays = (target == torch.arange(x.shape[1], device=x.device)) & (size > 0)
    total = torch.zeros_like(size).scatter_add(1, target, size)
    weighted = x * size[..., None]
    mean = torch.zeros_like(weighted).scatter_add(1, target[..., None].expand_as(x), weighted)
    mean = (mean / total.clamp(min=1)[..., None]).to(x.dtype)
    order = (~stays).to(torch.uint8).argsort(dim=1, stable=True)[:, :length]
    total = total.masked_fill(~stays, 0).gather(1, order)
    return mean.gather(1, order[..., None].expand(-1, -1, x.shape[2])), total


def check(rate: float, window: int | None) -> None:
    """Raise a ValueError for what cannot be matched."""
    if not 0 <= rate <= 0.5:
        raise ValueError(f"at most half of the tokens can go into the others: the rate must be in [0, 0.5], got {rate}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, or None for partners anywhere, got {window}")
