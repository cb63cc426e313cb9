"""The operators of ``zoo.kernels`` as standard ones, for files that others run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def decompositions() -> dict[Any, Callable[..., Any]]:
    """torch's own, and standard operators for the zoo's."""
    from zoo.kernels.causal_conv1d import reference as conv
    from zoo.kernels.rms_norm import reference as norm
    from zoo.kernels.rope import reference as rope
    from zoo.kernels.sliding_window_attention import reference as window

    table: dict[Any, Callable[..., Any]] = dict(torch.export.default_decompositions().items())
    return table | {
        torch.ops.zoo.causal_conv1d.default: lambda *args: conv.forward(*args[:-1]),
        torch.ops.zoo.rms_norm.default: lambda *args: norm.forward(*args[:-1]),
        torch.ops.zoo.rope.default: lambda *args: rope.forward(*args[:-1]),
        torch.ops.zoo.selective_scan.default: _selective_scan,
        torch.ops.zoo.ssd.default: _ssd,
        torch.ops.zoo.linear_attention.default: _linear_attention,
        torch.ops.zoo.taylor_attention.default: _taylor_attention,
        torch.ops.zoo.sliding_window_attention.default: lambda *args: window.forward(*args[:-1]),
        torch.ops.zoo.grouped_matmul.default: _grouped_matmul,
        torch.ops.aten.sort.stable: lambda x, *, stable, dim=-1, descending=False: torch.sort(x, dim, descending),
        torch.ops.aten.empty_permuted.default: lambda size, order, dtype, device, **_: torch.zeros(
            size, dtype=dtype, device=device
        ),
        torch.ops.aten.searchsorted.Tensor: lambda ascending, values: (ascending < values[:, None]).sum(-1),
    }


def _grouped_matmul(x: Tensor, weight: Tensor, offsets: Tensor, impl: str) -> Tensor:
    """Every expert over every row, and of each row its own expert's result: no shape depends on the routing."""
    row = torch.arange(x.shape[0], device=x.device)[:, None]
    y = x.new_zeros(x.shape[0], weight.shape[2])
    for expert in range(weight.shape[0]):
        y = torch.where((row >= offsets[expert]) & (row < offsets[expert + 1]), x @ weight[expert], y)
    return y


def _selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    softplus: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """The recurrence h = a h + b, of a length that is known as an associative scan: after k rounds a step holds the sum
    of 2^k steps."""
    from zoo.kernels.selective_scan.reference import skipped_and_gated, step, step_size

    _unpacked(starts)
    dt = step_size(dt, dt_bias, softplus)
    if isinstance(x.shape[1], torch.SymInt):
        y, state = _scanned(lambda h, x, dt, B, C, A: step(x, dt, A, B, C, h), state, (x, dt, B, C), (A,))
        return skipped_and_gated(y, x, D, z), state
    steps, channels = dt[..., None], x.shape[2] // B.shape[2]
    B, C = (t.repeat_interleave(channels, dim=2) for t in (B, C))
    decay = torch.exp(steps * A)  # (B, T, D, N)
    states = steps * x[..., None] * B
    states = torch.cat([states[:, :1] + decay[:, :1] * state[:, None], states[:, 1:]], dim=1)
    reach = 1
    while reach < x.shape[1]:
        states = states + decay * F.pad(states, [0, 0, 0, 0, reach, 0])[:, : x.shape[1]]
        decay = decay * F.pad(decay, [0, 0, 0, 0, reach, 0], value=1.0)[:, : x.shape[1]]
        reach *= 2
    return skipped_and_gated((states * C).sum(-1), x, D, z), states[:, -1]


def _ssd(x, dt, A, B, C, state, starts, chunk_size, impl):
    from zoo.kernels.ssd import reference

    _unpacked(starts)
    return _scanned(lambda h, x, dt, B, C, A: reference.step(x, dt, A, B, C, h), state, (x, dt, B, C), (A,))


def _linear_attention(q, k, v, log_decay, state, starts, scale, chunk_size, impl):
    from zoo.kernels.linear_attention import reference

    step: Any = reference.step
    _unpacked(starts)
    if log_decay is None:
        return _scanned(lambda h, *now: step(*now, None, h, scale), state, (q, k, v))
    return _scanned(lambda h, *now: step(*now, h, scale), state, (q, k, v, log_decay))


def _taylor_attention(q, k, v, state, starts, chunk_size, impl):
    from zoo.kernels.taylor_attention import reference

    step: Any = reference.step
    _unpacked(starts)
    return _scanned(lambda h, *now: step(*now, h), state, (q, k, v))


def _scanned(
    step: Callable[..., tuple[Tensor, ...]], state: Tensor, over_time: Sequence[Tensor], rest: Sequence[Tensor] = ()
) -> tuple[Tensor, ...]:
    """A loop in the program: ``step(state, *at a time, *rest)`` gives outputs (B, ...) and, last, the next state.

    Returns:
        The outputs (B, T, ...) and the last state.
    """

    def combined(state: Tensor, *now: Tensor) -> list[Tensor]:
        *outputs, state = step(state, *now)
        return [state, *outputs]

    times = [tensor.movedim(1, 0) for tensor in over_time]
    state, *outputs = torch.ops.higher_order.scan(combined, [state], times, tuple(rest))
    return *(output.movedim(0, 1) for output in outputs), state


def _unpacked(starts: Tensor | None) -> None:
    if starts is not None:
        raise ValueError("packed sequences have no ONNX form")
