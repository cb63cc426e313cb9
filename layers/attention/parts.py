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


def sinks_part(q: Tensor, other: Part, attention: Attention) -> list[Part]:
    """What learned sinks add to the denominator: a part of its own, beside any ``other``, with nothing in it."""
    sinks = getattr(attention, "sinks", None)
    if sinks is None:
        return []
    return [Part(torch.zeros_like(other.output), sinks.to(other.lse.dtype)[:, None].expand_as(other.lse))]
