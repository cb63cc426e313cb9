"""Attention whose logits are bounded by a tanh."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype
from zoo.layers.attention.keys import is_causal


def softcapped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, cap: float, scale: float) -> Tensor:
    r"""softmax(c tanh(scale q k^T / c)) v: no logit is beyond c in size.

    Args:
        q: (B, H, T, d).
        k, v: (B, G, S, d), each for H / G neighbouring heads of q.
        mask: as in ``Attended``.
        cap: c.
        scale: of the logits.

    Returns:
        (B, H, T, d). All logits exist at once.

    Paper: Gemma Team, "Gemma 2", arXiv 2408.00118, section 2.
    """
    if is_causal(q, k, mask):
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    heads = q.unflatten(1, (k.shape[1], -1))  # (B, G, H / G, T, d)
    scores = (heads @ k[:, :, None].mT).to(compute_dtype(q)) * (scale / cap)
    scores = cap * scores.tanh()
    if mask is not None:
        scores = scores.masked_fill(~(mask if mask.dim() == 2 else mask[:, None]), -torch.inf)
    return (scores.softmax(-1).to(v.dtype) @ v[:, :, None]).flatten(1, 2)
