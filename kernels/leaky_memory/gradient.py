"""The gradient of the leaky memory, of which only a chain over time is sequential.

Once the memories are known, hidden units, drives and their slopes are products over all steps at once, and so are the
gradients of weights. In between, the gradient g of the memories runs backwards:

    dz[t] = drive_slope[t] g[t],   dx[t] = hidden_slope[t] (W_out dz[t]),   dkept[t] = g[t] + W_in dx[t]
    g[t-1] = dy[t-1] + decay dkept[t], without the second where a sequence starts at t
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.leaky_memory.reference import SCALE, SLOPE


def gradients(
    states: Tensor,
    chain: Callable[..., tuple[Tensor, ...]],
    dy: Tensor,
    dstate: Tensor,
    x: Tensor,
    W_in: Tensor,
    W_out: Tensor,
    bias: Tensor,
    decay: Tensor,
    gain: Tensor,
    state: Tensor,
    starts: Tensor | None,
    smooth: bool,
) -> tuple[Tensor, ...]:
    """Of x, the weights, the bias, decay, gain and the initial state.

    Args:
        states: the memories after every step, unrounded.
        chain: (dy, dstate, decay, hidden_slope, drive_slope, W_in, W_out, starts) -> g, dx, dkept and the gradient of
            the initial state.
    """
    before = torch.cat([state[:, None], states[:, :-1]], dim=1)
    if starts is not None:
        before = before.masked_fill(starts[..., None], 0)
    kept = decay * before
    logits = x + kept @ W_in
    hidden = (F.silu if smooth else F.relu)(logits)
    drive = torch.tanh(SLOPE * (hidden @ W_out + bias))
    if smooth:
        gate = logits.sigmoid()
        hidden_slope = gate * (1 + logits * (1 - gate))
    else:
        hidden_slope = (logits > 0).to(logits.dtype)
    drive_slope = gain * (SCALE * SLOPE) * (1 - drive * drive)
    g, dx, dkept, dinitial = chain(dy, dstate, decay, hidden_slope, drive_slope, W_in, W_out, starts)
    dz = drive_slope * g
    return (
        dx,
        torch.einsum("btd,bth->dh", kept, dx),
        torch.einsum("bth,btd->hd", hidden, dz),
        dz.sum((0, 1)),
        (dkept * before).sum((0, 1)),
        (g * SCALE * drive).sum((0, 1)),
        dinitial,
    )
