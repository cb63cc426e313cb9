"""Learned attention sinks by kernels that know of none: as one more key."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.layers.attention.keys import is_causal


def sink_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, sinks: Tensor) -> Tensor:
    r"""softmax([s_h; scale q k^T]) [0; v] by a kernel that need not store the logits.

    Args:
        q, k, v, scale, sinks: as of ``sink_first``.
        mask: as in ``Attended``.

    Returns:
        (B, H, T, d).
    """
    causal, grouped = is_causal(q, k, mask), q.shape[1] != k.shape[1]
    q, k, v = sink_first(q, k, v, scale, sinks)
    q = F.pad(q, (0, 0, 1, 0)) if causal else q  # a query for the first key
    mask = None if mask is None else F.pad(mask, (1, 0), value=True)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped)
    return y[:, :, 1:, :-1] if causal else y[..., :-1]


def sink_first(q: Tensor, k: Tensor, v: Tensor, scale: float, sinks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values whose plain softmax of ``scale`` q k^T has the sinks in it.

    The key before all others has the logit s_h for each query of head h, by one more channel, and the value 0.

    Args:
        q: (B, H, T, d).
        k, v: (B, G, S, d).
        scale: of the logits.
        sinks: s (H,).

    Returns:
        (B, H, T, d + 1) and twice (B, G, 1 + S, d + 1); of the outputs the last channel is 0.
    """
    own = (sinks / scale).to(q.dtype)[:, None, None].expand(*q.shape[:-1], 1)
    first = F.pad(k.new_zeros(k.shape[-1]), (0, 1), value=1.0).expand(*k.shape[:2], 1, -1)
    return torch.cat([q, own], -1), torch.cat([first, F.pad(k, (0, 1))], 2), F.pad(v, (0, 1, 1, 0))
