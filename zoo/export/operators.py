"""The operators of ``zoo.kernels`` as standard ones, for files that others run."""

from __future__ import annotations

import importlib
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
        torch.ops.zoo.linear_attention.default: _stepped("linear_attention", 4),
        torch.ops.zoo.taylor_attention.default: _stepped("taylor_attention", 3),
        torch.ops.zoo.delta_rule.default: _stepped("delta_rule", 5),
        torch.ops.zoo.generalized_delta_rule.default: _stepped("generalized_delta_rule", 6),
        torch.ops.zoo.mlstm.default: _stepped("mlstm", 5, states=3),
        torch.ops.zoo.momentum_delta_rule.default: _stepped("momentum_delta_rule", 6, states=2),
        torch.ops.zoo.linear_recurrence.default: _linear_recurrence,
        torch.ops.zoo.slstm.default: _slstm,
        torch.ops.zoo.leaky_memory.default: _leaky_memory,
        torch.ops.zoo.long_conv.default: _long_conv,
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
        y, state = scanned(lambda h, x, dt, B, C, A: step(x, dt, A, B, C, h), (state,), (x, dt, B, C), (A,))
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
    return scanned(lambda h, x, dt, B, C, A: reference.step(x, dt, A, B, C, h), (state,), (x, dt, B, C), (A,))


def _stepped(name: str, times: int, states: int = 1) -> Callable[..., tuple[Tensor, ...]]:
    """A loop of the reference's ``step``, for an operator whose arguments are so many tensors over time, which may be
    None, so many states, where sequences start, numbers, the size of a chunk and the implementation."""

    def looped(*given: Any) -> tuple[Tensor, ...]:
        step = importlib.import_module(f"zoo.kernels.{name}.reference").step
        over_time, held, (starts, *numbers) = given[:times], given[times : times + states], given[times + states : -2]
        _unpacked(starts)

        def combined(*now: Tensor) -> tuple[Tensor, ...]:
            own = iter(now[states:])
            return step(*(None if tensor is None else next(own) for tensor in over_time), *now[:states], *numbers)

        return scanned(combined, held, [tensor for tensor in over_time if tensor is not None])

    return looped


def _linear_recurrence(x, log_decay, state, starts, impl):
    from zoo.kernels.linear_recurrence.reference import step

    _unpacked(starts)
    return scanned(lambda h, x, g: (step(x, g, h), step(x, g, h)), (state,), (x, log_decay))


def _slstm(x, R, state, starts, impl):
    from zoo.kernels.slstm.reference import step

    def combined(state: Tensor, x: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
        state = step(x, R, state)
        return state[:, 0].clone(), state

    _unpacked(starts)
    return scanned(combined, (state,), (x,), (R,))


def _leaky_memory(x, W_in, W_out, bias, decay, gain, state, starts, smooth, impl):
    from zoo.kernels.leaky_memory.reference import step

    def combined(state: Tensor, x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        W_in, W_out, bias, decay, gain = weights
        state = step(x, W_in, W_out, bias, decay, gain, state, smooth)
        return state.clone(), state

    _unpacked(starts)
    return scanned(combined, (state,), (x,), (W_in, W_out, bias, decay, gain))


def _long_conv(u: Tensor, kernel: Tensor, D: Tensor | None, gate: Tensor | None, circular: bool, impl: str) -> Tensor:
    """A depthwise convolution whose taps are as many as the steps may reach back."""
    if circular:
        raise ValueError("a circular convolution has no ONNX form here")
    padded = F.pad(u.mT, (kernel.shape[1] - 1, 0))
    y = F.conv1d(padded, kernel.flip(1)[:, None].to(u.dtype), groups=u.shape[2]).mT
    y = y if D is None else y + D * u
    return y if gate is None else gate * y


def scanned(
    step: Callable[..., tuple[Tensor, ...]],
    states: Sequence[Tensor],
    over_time: Sequence[Tensor],
    rest: Sequence[Tensor] = (),
) -> tuple[Tensor, ...]:
    """A loop in the program: ``step(*states, *at a time, *rest)`` gives outputs (B, ...), then the next states.

    Returns:
        The outputs (B, T, ...) and the last states.
    """
    count = len(states)

    def combined(*given: Tensor) -> list[Tensor]:
        found = list(step(*given))
        return [*found[-count:], *(output.clone() for output in found[:-count])]  # no output is a view of another

    times = [tensor.movedim(1, 0).contiguous() for tensor in over_time]  # a step takes views of its slices
    found = torch.ops.higher_order.scan(combined, list(states), times, tuple(rest))
    return *(output.movedim(0, 1) for output in found[count:]), *found[:count]


def _unpacked(starts: Tensor | None) -> None:
    if starts is not None:
        raise ValueError("packed sequences have no ONNX form")
