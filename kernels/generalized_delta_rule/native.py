"""The generalised delta rule on the CPU in C (``generalized_delta_rule.c``): step by step, threaded over heads."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels import native

SOURCE = Path(__file__).with_name("generalized_delta_rule.c")


def forward(q, k, v, a, b, log_decay, state, starts, scale, chunk_size) -> tuple[Tensor, Tensor]:
    """Same arguments and results as the reference, contiguous and of one dtype."""
    output, final = torch.empty_like(v), torch.empty_like(state)
    native.call(
        SOURCE, "generalized_delta_rule_forward", *_sizes(q, v),
        _scaled(q, scale), k, v, a, b, log_decay, state, starts, output, final,
    )  # fmt: skip
    return output, final


def backward(dy, dstate, q, k, v, a, b, log_decay, state, starts, scale, chunk_size) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, a, b, log_decay and the initial state."""
    found = tuple(torch.empty_like(t) for t in (q, k, v, a, b, log_decay, state))
    native.call(
        SOURCE, "generalized_delta_rule_backward", *_sizes(q, v),
        _scaled(dy, scale), dstate, q, k, v, a, b, log_decay, state, starts, *found,
    )  # fmt: skip
    return found


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)


def _scaled(tensor: Tensor, scale: float) -> Tensor:
    return tensor if scale == 1 else scale * tensor


def _sizes(q: Tensor, v: Tensor) -> tuple[int, ...]:
    return (*q.shape, v.shape[3], torch.get_num_threads())
