"""The selective scan of Mamba-1, dispatched over its implementations and registered as one torch operator."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.kernels.autograd import recomputed_gradients
from zoo.kernels.dispatch import (
    Implementation,
    Operation,
    as_dtype,
    check_floating,
    check_shape,
    compute_dtype,
    sequence_starts,
)
from zoo.kernels.mamba_ssm_support import selective_scan_implementation
from zoo.kernels.selective_scan import chunked, native, reference
from zoo.kernels.triton_support import triton_implementation


class ScanOutput(NamedTuple):
    """Output in the dtype and shape of x; final state in float32 (float64 for float64 inputs)."""

    output: Tensor
    final_state: Tensor


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    impl: str = "auto",
) -> ScanOutput:
    r"""Linear recurrence with input-dependent step size, input and output maps (Mamba-1).

    .. math::
        h_t = \exp(\Delta_t A) h_{t-1} + \Delta_t x_t B_t, \quad
        y_t = (C_t \cdot h_t + D x_t) \, \mathrm{silu}(z_t)

    with :math:`\Delta_t = \mathrm{softplus}(dt_t + dt\_bias)` when ``dt_softplus``.

    Args:
        x: input (B, T, D), any floating dtype; sums and state are kept in float32 (float64 if any input is float64).
        dt: step size (B, T, D), in the time units of 1 / A.
        A: continuous-time decay rate (D, N), negative for a stable system; of any size: -inf forgets the state in every
            step of dt > 0, and gets no gradient. A step of dt = 0 leaves the state as it is.
        B, C: input and output maps (B, T, G, N) for G groups of D / G neighbouring channels.
        D: skip weight (D,). z: gate (B, T, D). dt_bias: (D,), added to dt before the softplus.
        initial_state: (B, D, N), continues the sequence that the first token belongs to; zeros when None.
        seq_idx: (B, T) integers; the state restarts from zero where the value changes (packed sequences).
        impl: "auto" or the name of an implementation ("triton", "native", "chunked", "reference", "mamba_ssm"). A
            single time step is the recurrence itself and has one implementation.

    Returns:
        ScanOutput(output (B, T, D), final_state (B, D, N)), both differentiable.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together.
        RuntimeError: when the named implementation cannot run on the device of x.

    Paper: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752.
    """
    _check(x, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx)
    dtype = compute_dtype(x, dt, A, B, C, D, z, dt_bias)
    state = x.new_zeros(x.shape[0], *A.shape, dtype=dtype) if initial_state is None else initial_state.to(dtype)
    A = A.to(dtype).clamp(min=1e-8 * torch.finfo(dtype).min)  # -inf 0 is no number
    tensors = x, dt, A, B, C, D, z, dt_bias, state
    if x.shape[1] == 1:
        wide = as_dtype(dtype, *tensors)
        y, state = reference.forward(*wide, None, dt_softplus)  # pyright: ignore[reportArgumentType, reportCallIssue]
        return ScanOutput(y.to(x.dtype), state)
    return ScanOutput(*_scan(*tensors, sequence_starts(seq_idx), dt_softplus, impl))


operation = Operation(
    "selective_scan",
    triton_implementation("zoo.kernels.selective_scan.triton"),
    Implementation("native", native.forward, native.backward, native.obstacle),
    Implementation("chunked", chunked.forward, chunked.backward),
    Implementation(
        "reference",
        reference.forward,
        lambda dy, dstate, *inputs: recomputed_gradients(
            partial(reference.forward, softplus=inputs[-1]), inputs[:-1], (dy, dstate)
        ),
    ),
    selective_scan_implementation(),
)


@torch.library.custom_op("zoo::selective_scan", mutates_args=())
def _scan(
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
    chosen = operation.resolve(impl, x.device)
    y, final = chosen.forward(*chosen.prepare(state.dtype, x, dt, A, B, C, D, z, dt_bias, state, starts), softplus)
    return y.to(x.dtype), final


@torch.library.custom_op("zoo::selective_scan_backward", mutates_args=())
def _scan_backward(
    dy: Tensor,
    dstate: Tensor,
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
) -> list[Tensor]:
    """Gradients of the floating tensors that are there."""
    chosen, inputs = operation.resolve(impl, x.device), (x, dt, A, B, C, D, z, dt_bias, state)
    gradients = chosen.backward(*chosen.prepare(state.dtype, dy, dstate, *inputs, starts), softplus)
    return [g.to(i.dtype).contiguous() for g, i in zip(gradients, _given(*inputs), strict=True)]


@_scan.register_fake
def _(x, dt, A, B, C, D, z, dt_bias, state, starts, softplus, impl):
    return x.new_empty(x.shape), state.new_empty(state.shape)


@_scan_backward.register_fake
def _(dy, dstate, x, dt, A, B, C, D, z, dt_bias, state, starts, softplus, impl):
    return [t.new_empty(t.shape) for t in _given(x, dt, A, B, C, D, z, dt_bias, state)]


def _given(*tensors: Tensor | None) -> list[Tensor]:
    return [t for t in tensors if t is not None]


def _setup_context(ctx, inputs, output):
    *tensors, ctx.softplus, ctx.impl = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy, dstate):
    inputs = ctx.saved_tensors
    gradients = iter(_scan_backward(dy, dstate, *inputs, ctx.softplus, ctx.impl))
    return *(None if t is None else next(gradients) for t in inputs[:-1]), None, None, None


_scan.register_autograd(_backward, setup_context=_setup_context)


def _check(x, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx) -> None:
    check = partial(check_shape, "selective_scan")
    check("x", x, "(B, T, D)", None, None, None)
    batch, length, dim = x.shape
    check("A", A, "(D, N)", dim, None)
    state = A.shape[1]
    check("B", B, "(B, T, G, N)", batch, length, None, state)
    check("C", C, "(B, T, G, N)", batch, length, B.shape[2], state)
    check("dt", dt, "(B, T, D)", batch, length, dim)
    check("z", z, "(B, T, D)", batch, length, dim)
    check("D", D, "(D,)", dim)
    check("dt_bias", dt_bias, "(D,)", dim)
    check("initial_state", initial_state, "(B, D, N)", batch, dim, state)
    check("seq_idx", seq_idx, "(B, T)", batch, length)
    check_floating("selective_scan", x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias, initial_state=initial_state)
    if length == 0 or dim % B.shape[2]:
        raise ValueError(
            f"selective_scan: T must be at least 1 and the groups must divide the channels, got T {length}, "
            f"{B.shape[2]} groups, {dim} channels"
        )
