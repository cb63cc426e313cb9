"""Taylor linear attention as matrix products: quadratic within a chunk, by the features of one chunk between chunks.

The state has no decay, so the gradient of q needs the state alone and the gradients of k and v the state's gradient
alone: two sweeps over the chunks, forwards and backwards, and no state or feature is kept for longer than a chunk.

Inside, x is a query or key below a one, (1, x / K^(1/4)), time last: (B, H, K + 1, T). Then x_t . x_j = 1 + s, the
weight is ((1 + s)^2 + 1) / 2, and the rows that make a feature are copied whole. y is (v, 1): (B, H, T, V + 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from math import sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SUMMANDS = 64


class Chunk(NamedTuple):
    """Steps of a chunk, and masks: pairs of steps; steps that the past reaches; that reach the future; the state."""

    steps: slice
    within: Tensor  # ([B, 1,] n, n)
    from_past: Tensor | float  # (B, 1, n, 1)
    to_future: Tensor | float  # (B, 1, n, 1)
    across: Tensor | float  # (B, 1, 1, 1)


def forward(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, starts: Tensor | None, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Same arguments and results as the reference."""
    features = _Features(q)
    q, k, y = _below_ones(q), _below_ones(k), _with_ones(v)
    output = torch.empty_like(y)
    for chunk in _chunks(y, starts, chunk_size):
        q_c, k_c, y_c = q[..., chunk.steps], k[..., chunk.steps], y[:, :, chunk.steps]
        _, weights = _weights(q_c, k_c, chunk)
        output[:, :, chunk.steps] = weights @ y_c + chunk.from_past * _read(state, features(q_c))
        state = chunk.across * state + features(k_c) @ (chunk.to_future * y_c)
    output = output.transpose(1, 2)
    return output[..., :-1].clone(), output[..., -1].clone(), state


def backward(
    dnumerator: Tensor,
    dtotal: Tensor,
    dstate: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    starts: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v and the initial state."""
    features, scale = _Features(q), q.shape[-1] ** -0.25
    q, k, y = _below_ones(q), _below_ones(k), _with_ones(v)
    dy = torch.cat([dnumerator, dtotal[..., None]], dim=-1).transpose(1, 2).contiguous()
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(y)
    for chunk in _chunks(y, starts, chunk_size):
        q_c, k_c, y_c, dy_c = q[..., chunk.steps], k[..., chunk.steps], y[:, :, chunk.steps], dy[:, :, chunk.steps]
        scores, _ = _weights(q_c, k_c, chunk)
        dscores = (dy_c @ y_c.mT) * scores
        dq[..., chunk.steps] = k_c @ dscores.mT + features.gradient(q_c, state @ (chunk.from_past * dy_c).mT)
        state = chunk.across * state + features(k_c) @ (chunk.to_future * y_c)
    for chunk in _chunks(y, starts, chunk_size, reverse=True):
        q_c, k_c, y_c, dy_c = q[..., chunk.steps], k[..., chunk.steps], y[:, :, chunk.steps], dy[:, :, chunk.steps]
        scores, weights = _weights(q_c, k_c, chunk)
        dscores = (dy_c @ y_c.mT) * scores
        dk[..., chunk.steps] = q_c @ dscores + features.gradient(k_c, dstate @ (chunk.to_future * y_c).mT)
        dv[:, :, chunk.steps] = weights.mT @ dy_c + chunk.to_future * _read(dstate, features(k_c))
        dstate = chunk.across * dstate + features(q_c) @ (chunk.from_past * dy_c)
    dq, dk = (scale * d[:, :, 1:].permute(0, 3, 1, 2) for d in (dq, dk))
    return dq, dk, dv[..., :-1].transpose(1, 2), dstate


class _Features:
    """``taylor_features`` along dim 2 of (B, H, K + 1, n), and the gradient back through it."""

    def __init__(self, like: Tensor):
        width = like.shape[-1] + 1
        self.i, self.j = torch.triu_indices(width, width, device=like.device)
        self.factor = like.new_ones(len(self.i), 1)
        self.factor[(self.i == self.j) & (self.i > 0)] = sqrt(0.5)
        rows = torch.arange(width, device=like.device)[:, None]
        self.to_i, self.to_j = (self.factor.mT * (rows == index) for index in (self.i, self.j))  # (K + 1, D)

    def __call__(self, x: Tensor) -> Tensor:
        return x.index_select(2, self.i).mul_(x.index_select(2, self.j)).mul_(self.factor)

    def gradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        at_i = x.index_select(2, self.j).mul_(gradient)
        at_j = x.index_select(2, self.i).mul_(gradient)
        return self.to_i @ at_i + self.to_j @ at_j


def _read(state: Tensor, features: Tensor) -> Tensor:
    """features^T state, from sums over at most ``SUMMANDS`` features, which round less than one over hundreds."""
    parts = zip(features.split(SUMMANDS, dim=2), state.split(SUMMANDS, dim=2), strict=True)
    return reduce(torch.add, (feature.mT @ rows for feature, rows in parts))


def _weights(q: Tensor, k: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor]:
    """1 + s, which is the derivative of the weight 1 + s + s^2 / 2, and the weight: (B, H, n, n)."""
    scores = (q.mT @ k) * chunk.within
    return scores, (scores.square() + chunk.within) * 0.5


def _chunks(y: Tensor, starts: Tensor | None, chunk_size: int, reverse: bool = False) -> Iterator[Chunk]:
    length = y.shape[2]
    segments = None if starts is None else starts.cumsum(1)[:, None, :, None]  # (B, 1, T, 1)
    lower = y.new_ones(min(chunk_size, length), min(chunk_size, length)).tril()
    firsts = range(0, length, chunk_size)
    for first in reversed(firsts) if reverse else firsts:
        steps = slice(first, min(first + chunk_size, length))
        within = lower[: steps.stop - first, : steps.stop - first]
        if segments is None:
            yield Chunk(steps, within, 1.0, 1.0, 1.0)
        else:
            here = segments[:, :, steps]
            before, last = segments[:, :, max(first - 1, 0), None], here[:, :, -1:]
            masks = (here == before, here == last, before == last)
            yield Chunk(steps, within * (here == here.mT), *(mask.to(y.dtype) for mask in masks))


def _below_ones(x: Tensor) -> Tensor:
    """(B, T, H, K) to (B, H, K + 1, T): a one, then x / K^(1/4)."""
    return F.pad(x * x.shape[-1] ** -0.25, [1, 0], value=1.0).permute(0, 2, 3, 1).contiguous()


def _with_ones(v: Tensor) -> Tensor:
    """(B, T, H, V) to (B, H, T, V + 1): v, then a one."""
    return F.pad(v, [0, 1], value=1.0).transpose(1, 2).contiguous()
