"""Cross-entropy of a linear layer with the full logits."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    ignore_index: int,
    z_loss: float,
    softcap: float | None,
    label_smoothing: float,
    _: int,
) -> Tensor:
    """The loss of ``linear_cross_entropy``, summed over the counted rows."""
    logits = hidden @ weight.mT
    if bias is not None:
        logits = logits + bias
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    counted = labels != ignore_index
    normaliser = torch.logsumexp(logits, dim=-1)
    chosen = logits.gather(1, labels.where(counted, 0)[:, None])[:, 0]
    target = (1 - label_smoothing) * chosen
    if label_smoothing:
        target = target + label_smoothing * logits.mean(-1)
    return (normaliser - target + z_loss * normaliser.square()).where(counted, 0).sum()
