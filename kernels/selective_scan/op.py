"""The selective scan of Mamba-1, dispatched over its implementations and registered as one torch operator."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.kernels.dispatch import Implementation, Operation, Sizes, as_dtype, compute_dtype, initial, sequence_starts
from zoo.kernels.mamba_ssm_support import selective_scan_implementation
from zoo.kernels.operator import Like, define
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
        D: skip weight (D,).
        z: gate (B, T, D).
        dt_bias: (D,), added to dt before the softplus.
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
    _check(x, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx, impl)
    dtype = compute_dtype(x, dt, A, B, C, D, z, dt_bias)
    state = initial(initial_state, (x.shape[0], *A.shape), x, dtype)
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
    Implementation("reference", reference.forward),
    selective_scan_implementation(),
)


def _shapes(
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
) -> tuple[Like, Like]:
    return Like(x), Like(state)


def _flops(x, dt, A, *_) -> int:
    """Of the recurrence: decay (2), input (1), update (2) and output (2) for each state and step."""
    return 7 * x[0] * x[1] * prod(A)


_scan = define(operation, "x dt A B C D z dt_bias state", _shapes, flops=_flops)


def _check(x, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx, impl) -> None:
    sizes = Sizes("selective_scan")
    sizes.check("BTD", x=x)
    sizes.check("DN", A=A)
    sizes.check("BTGN", B=B, C=C)
    sizes.check("BTD", dt=dt, z=z)
    sizes.check("D", D=D, dt_bias=dt_bias)
    sizes.check("BDN", initial_state=initial_state)
    sizes.check("BT", seq_idx=seq_idx)
    operation.check(
        impl, {"seq_idx": seq_idx}, x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias, initial_state=initial_state
    )
    length, groups, dim = sizes["T"], sizes["G"], sizes["D"]
    if length == 0 or dim % groups:
        raise ValueError(
            f"selective_scan: T must be at least 1 and the groups must divide the channels, got T {length}, "
            f"{groups} groups, {dim} channels"
        )
