"""Cross-entropy of a linear layer over chunks of rows, whose logits become their own gradient in place.

With c the capped logits of a row, p their softmax, l their logsumexp and e the label smoothing, the gradient of
l - (1 - e) c_y - e mean(c) + z l^2 is (1 + 2 z l) p - (1 - e) 1_y - e / V: no logits are computed twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 1 << 23  # logits that exist at a time


def forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    ignore_index: int,
    z_loss: float,
    softcap: float | None,
    label_smoothing: float,
    chunk_size: int,
) -> Tensor:
    """Same arguments and result as the reference."""
    losses, buffer = [hidden.new_zeros(1)], _buffer(hidden, weight, chunk_size)
    rows = len(buffer)
    for h, label in zip(hidden.split(rows), labels.split(rows), strict=True):
        counted = label != ignore_index
        logits = _logits(buffer[: len(h)], h, weight, bias, softcap)
        loss, _, _ = _exponentials(logits, label.where(counted, 0), z_loss, label_smoothing)
        losses.append(loss.where(counted, 0))
    return torch.cat(losses).sum()


def backward(
    hidden, weight, bias, labels, ignore_index, z_loss, softcap, label_smoothing, chunk_size
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The loss, and its gradients of hidden, weight and bias."""
    losses, buffer = [hidden.new_zeros(1)], _buffer(hidden, weight, chunk_size)
    rows = len(buffer)
    dhidden, dweight = torch.empty_like(hidden), torch.zeros_like(weight)
    dbias = None if bias is None else torch.zeros_like(bias)
    chunks = (t.split(rows) for t in (hidden, dhidden, labels))
    for h, dh, label in zip(*chunks, strict=True):
        counted = label != ignore_index
        label = label.where(counted, 0)[:, None]
        logits = _logits(buffer[: len(h)], h, weight, bias, softcap)
        slope = None if softcap is None else (logits / softcap).square_().neg_().add_(1)
        loss, total, normaliser = _exponentials(logits, label[:, 0], z_loss, label_smoothing)
        losses.append(loss.where(counted, 0))

        dlogits = logits.mul_(((1 + 2 * z_loss * normaliser) * counted / total)[:, None])
        target = counted[:, None].to(dlogits.dtype)
        dlogits.scatter_add_(1, label, (label_smoothing - 1) * target)
        if label_smoothing:
            dlogits -= label_smoothing / len(weight) * target
        if slope is not None:
            dlogits *= slope
        torch.mm(dlogits, weight, out=dh)
        dweight.addmm_(dlogits.mT, h)
        if dbias is not None:
            dbias += dlogits.sum(0)
    return torch.cat(losses).sum(), dhidden, dweight, dbias


def _buffer(hidden: Tensor, weight: Tensor, chunk_size: int) -> Tensor:
    """Room for the logits of a chunk: (rows, V)."""
    rows = max(1, min(chunk_size, len(hidden), LARGEST // len(weight)))
    return hidden.new_empty(rows, len(weight))


def _logits(out: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    logits = torch.mm(h, weight.mT, out=out)
    if bias is not None:
        logits += bias
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _exponentials(logits: Tensor, label: Tensor, z_loss: float, label_smoothing: float) -> tuple[Tensor, ...]:
    """Loss, sum of the exponentials and logsumexp of each row; the logits turn into exponentials, at most 1."""
    target = (1 - label_smoothing) * logits.gather(1, label[:, None])[:, 0]
    if label_smoothing:
        target += label_smoothing * logits.mean(1)
    largest = logits.amax(1)
    total = logits.sub_(largest[:, None]).exp_().sum(1)
    normaliser = largest + total.log()
    return normaliser - target + z_loss * normaliser.square(), total, normaliser
