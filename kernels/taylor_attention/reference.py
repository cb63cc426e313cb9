"""The recurrence of Taylor linear attention, one step a time step."""

from __future__ import annotations

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor


def taylor_features(x: Tensor) -> Tensor:
    r"""The map phi of (..., K) to (..., (K + 1)(K + 2) / 2); phi(q) . phi(k) = 1 + s + s^2 / 2 for s = q . k / sqrt(K).

    The upper triangle, row by row, of the outer product of (1, x / K^(1/4)) with itself, that is 1, the x_i / K^(1/4),
    then the x_i x_j / sqrt(K) of i <= j; the squares x_i^2 times sqrt(1/2). (The paper's map has the x_i x_j of all i
    and j, each times sqrt(1/2): the same dot products from almost twice the numbers.)
    """
    width = x.shape[-1] + 1
    x = F.pad(x * x.shape[-1] ** -0.25, [1, 0], value=1.0)
    i, j = torch.triu_indices(width, width, device=x.device)
    products = x[..., i] * x[..., j]
    return torch.where((i == j) & (i > 0), sqrt(0.5) * products, products)


def step(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One time step: q, k (B, H, K), v (B, H, V), state (B, H, D, V + 1) -> numerator (B, H, V), sum (B, H), state."""
    state = state + taylor_features(k)[..., None] * F.pad(v, [0, 1], value=1.0)[..., None, :]
    y = (taylor_features(q)[..., None, :] @ state)[..., 0, :]
    return y[..., :-1], y[..., -1], state


def forward(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, starts: Tensor | None, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """All time steps, differentiable by autograd; shapes as in ``taylor_attention``, ``starts`` (B, T) boolean.

    Returns the numerators (B, T, H, V), the sums of the weights (B, T, H), and the final state.
    """
    numerators, sums = [], []
    for t, (q_t, k_t, v_t) in enumerate(zip(*(m.unbind(1) for m in (q, k, v)), strict=True)):
        if starts is not None:
            state = state * ~starts[:, t, None, None, None]
        numerator, total, state = step(q_t, k_t, v_t, state)
        numerators.append(numerator)
        sums.append(total)
    return torch.stack(numerators, dim=1), torch.stack(sums, dim=1), state
