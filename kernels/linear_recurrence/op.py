"""The diagonal linear recurrence, dispatched over its implementations and registered as one torch operator."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from torch import Tensor

from zoo.kernels.dispatch import Implementation, Operation, Sizes, compute_dtype, initial, sequence_starts
from zoo.kernels.linear_recurrence import fused, native, reference
from zoo.kernels.native import in_rows
from zoo.kernels.operator import Like, define
from zoo.kernels.triton_support import triton_implementation


class RecurrenceOutput(NamedTuple):
    """All states in the dtype and shape of x; the last one in float32 (float64 for float64 inputs)."""

    output: Tensor
    final_state: Tensor


def linear_recurrence(
    x: Tensor,
    log_decay: Tensor,
    *,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    impl: str = "auto",
) -> RecurrenceOutput:
    r"""A leaky sum a channel, whose leak each step decides: the recurrence of the RG-LRU and other gated units.

    .. math:: h_t = \exp(g_t) \odot h_{t-1} + x_t

    Args:
        x: input (B, T, D), any floating dtype; the state is kept in float32 (float64 if x or log_decay is float64).
        log_decay: g (B, T, D), at most 0 for a stable state, -inf to forget it; applied before the step's input is
            added.
        initial_state: (B, D), continues the sequence that the first token belongs to; zeros when None.
        seq_idx: (B, T) integers; the state restarts from zero where the value changes (packed sequences).
        impl: "auto" or the name of an implementation ("triton", "native", "fused", "reference"). A single time step is
            the recurrence itself and has one implementation.

    Returns:
        RecurrenceOutput(output (B, T, D): h of every step, final_state (B, D): the last h), both differentiable.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together.
        RuntimeError: when the named implementation cannot run on the device of x.

    Papers: De et al., "Griffin", arXiv 2402.19427 (RG-LRU); Martin and Cundy, "Parallelizing Linear Recurrent Neural
    Nets Over Sequence Length", arXiv 1709.04057.
    """
    _check(x, log_decay, initial_state, seq_idx, impl)
    dtype = compute_dtype(x, log_decay)
    state = initial(initial_state, (x.shape[0], x.shape[2]), x, dtype)
    if x.shape[1] == 1:
        state = reference.step(x[:, 0].to(dtype), log_decay[:, 0].to(dtype), state)
        return RecurrenceOutput(state[:, None].to(x.dtype), state)
    return RecurrenceOutput(*_recurrence(x, log_decay, state, sequence_starts(seq_idx), impl))


operation = Operation(
    "linear_recurrence",
    triton_implementation("zoo.kernels.linear_recurrence.triton"),
    Implementation("native", native.forward, native.backward, native.obstacle, prepare=in_rows),
    Implementation("fused", fused.forward, fused.backward),
    Implementation("reference", reference.forward),
)


def _shapes(x: Tensor, log_decay: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Like, Like]:
    return Like(x), Like(state)


def _flops(x, *_) -> int:
    """A decay, a product and a sum for each state and step."""
    return 3 * prod(x)


_recurrence = define(operation, "x log_decay state", _shapes, flops=_flops)


def _check(x, log_decay, initial_state, seq_idx, impl) -> None:
    sizes = Sizes("linear_recurrence")
    sizes.check("BTD", x=x, log_decay=log_decay)
    sizes.check("BD", initial_state=initial_state)
    sizes.check("BT", seq_idx=seq_idx)
    operation.check(impl, {"seq_idx": seq_idx}, x=x, log_decay=log_decay, initial_state=initial_state)
    if sizes["T"] == 0:
        raise ValueError("linear_recurrence: T must be at least 1, got T 0")
