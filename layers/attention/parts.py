"""Attention over parts of the keys, put together by their log-sum-exps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.layers.cache.call import Attention


class Part(NamedTuple):
    """What attention to some of the keys gives: output (B, H, T, d), and the logarithm of the sum of exponentials of
    its logits (B, H, T), -inf where no key is seen."""

    output: Tensor
    lse: Tensor


def attend_part(attention: Attention, logits: Tensor, v: Tensor) -> Part:
    """Of logits (B, G, H / G, T, S), -inf at keys that are not seen, and values (B, G, S, d)."""
    lse = logits.logsumexp(-1)
    weights = (logits - lse.masked_fill(lse.isinf(), 0)[..., None]).exp()
    return Part(attention.mixed(weights, v), lse.flatten(1, 2))


def joined(parts: Sequence[Part]) -> Tensor:
    r"""Attention to all keys, from that to each of several disjoint parts, in any order.

    .. math:: o = \frac{\sum_i e^{l_i} o_i}{\sum_i e^{l_i}}

    Paper: Juravsky et al., "Hydragen", arXiv 2402.05099, equation 4.
    """
    weights = torch.stack([part.lse for part in parts]).softmax(0)  # of parts without a key 0
    return sum(w.to(part.output.dtype)[..., None] * part.output for w, part in zip(weights, parts, strict=True))  # type: ignore[return-value]


def constant_parts(q: Tensor, other: Part, attention: Attention) -> list[Part]:
    """What q (B, H, T, d) sees besides all tokens, beside any ``other`` part: learned sinks, which add to the
    denominator with nothing in them, and learned keys and values (H, n, d)."""
    found, sinks, learned = [], getattr(attention, "sinks", None), getattr(attention, "learned", None)
    if sinks is not None:
        lse = sinks.to(other.lse.dtype)[:, None].expand_as(other.lse)
        found.append(Part(torch.zeros_like(other.output), lse))
    if learned is not None:
        k, v = (t.to(q.dtype).expand(len(q), -1, -1, -1) for t in learned)
        found.append(attend_part(attention, attention.logits(q, k, v), v))
    return found
