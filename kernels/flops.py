"""Floating-point operations of the kernels, for torch's counter."""

from __future__ import annotations

from collections.abc import Callable
from math import log2, prod
from typing import TYPE_CHECKING, Any

import torch

import zoo.kernels  # noqa: F401  (defines the operators)

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


def flop_counter(**options: Any) -> FlopCounterMode:
    """A ``torch.utils.flop_counter.FlopCounterMode`` that also counts the zoo's operations; ``options`` are its own.

    Torch's module brings Triton along where it is installed, so it is imported here, not with the kernels.
    """
    from torch.utils.flop_counter import FlopCounterMode

    mapping = {}
    for name, (formula, gradients) in FORMULAS.items():
        mapping[getattr(torch.ops.zoo, name)] = formula
        if gradients is not None:
            mapping[getattr(torch.ops.zoo, f"{name}_backward")] = _twice(formula, gradients)
    return FlopCounterMode(custom_mapping=mapping, **options)


def _selective_scan(x, dt, A, *_, **__) -> int:
    """Of the recurrence: decay (2), input (1), update (2) and output (2) for each state and step."""
    return 7 * x[0] * x[1] * prod(A)


def _ssd(x, dt, A, B, *_, **__) -> int:
    """Of the recurrence, whatever the chunk size: input (1), update (2) and output (2) for each state and step."""
    return 5 * prod(x) * B[3]


def _causal_conv1d(x, weight, *_, **__) -> int:
    return 2 * x[0] * x[1] * prod(weight)


def _linear_attention(q, k, v, *_, **__) -> int:
    """Of the recurrence: update (2) and output (2) for each state and step."""
    return 4 * prod(q) * v[3]


def _delta_rule(q, k, v, *_, **__) -> int:
    """Of the recurrence: what the key reads (2), update (2) and output (2) for each state and step."""
    return 6 * prod(q) * v[3]


def _taylor_attention(q, k, v, state, *_, **__) -> int:
    """Of the recurrence: update (2) and output (2) for each state and step."""
    return 4 * v[0] * v[1] * prod(state[1:])


def _long_conv(u, kernel, D, gate, circular, *_, **__) -> int:
    """Three real FFTs of n steps (kernel once a channel, input and output once a row) and the spectra's product."""
    batch, length, dim = u
    n = length if circular else length + kernel[1] - 1
    return int(dim * ((2 * batch + 1) * 2.5 * n * log2(max(n, 2)) + 3 * batch * n))


def _sliding_window_attention(q, k, v, first, window, sinks, *_, **__) -> int:
    """Two products for each query and the keys it sees."""
    (batch, length, heads, dim), (keys, value_dim) = q, (k[1], v[3])
    pairs = sum(min(i, window + min(sinks, max(i - window, 0))) for i in range(keys - length + 1, keys + 1))
    return 2 * batch * heads * pairs * (dim + value_dim)


def _block_sparse_attention(q, k, v, block_mask, *_, **__) -> int:
    """Two products for every query and key: the share of active blocks is data, which shapes do not tell."""
    return 2 * q[0] * q[1] * q[2] * k[1] * (q[3] + v[3])


def _grouped_matmul(x, weight, *_, **__) -> int:
    return 2 * x[0] * prod(weight[1:])


def _rms_norm(x, *_, **__) -> int:
    """Square, sum and two factors for each element; the gate is not counted."""
    return 4 * prod(x)


def _rope(x, cos, *_, **__) -> int:
    """Four products and two sums for each pair."""
    return 6 * prod(x[:3]) * cos[-1]


def _linear_cross_entropy(hidden, weight, *inputs, **__) -> int:
    """The logits, and with them the two products of the gradients where those are asked for."""
    gradients = inputs[-2]
    return (6 if gradients else 2) * hidden[0] * prod(weight)


def _twice(formula: Callable[..., int], skip: int) -> Callable[..., int]:
    """Of a backward, whose arguments begin with ``skip`` gradients; what it recomputes is not counted."""
    return lambda *shapes, **options: 2 * formula(*shapes[skip:])


# operator -> formula of the forward, and how many gradients its backward begins with (None: it has no work of its own)
FORMULAS: dict[str, tuple[Callable[..., int], int | None]] = {
    "selective_scan": (_selective_scan, 2),
    "ssd": (_ssd, 2),
    "causal_conv1d": (_causal_conv1d, 2),
    "linear_attention": (_linear_attention, 2),
    "delta_rule": (_delta_rule, 2),
    "taylor_attention": (_taylor_attention, 3),
    "long_conv": (_long_conv, 1),
    "sliding_window_attention": (_sliding_window_attention, 3),
    "block_sparse_attention": (_block_sparse_attention, 3),
    "grouped_matmul": (_grouped_matmul, 1),
    "rms_norm": (_rms_norm, 1),
    "rope": (_rope, None),
    "linear_cross_entropy": (_linear_cross_entropy, None),
}
