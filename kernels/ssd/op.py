"""State-space duality (Mamba-2), dispatched over its implementations and registered as one torch operator."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.dispatch import (
    Implementation,
    Operation,
    Sizes,
    compute_dtype,
    initial,
    is_plain_step,
    sequence_starts,
)
from zoo.kernels.mamba_ssm_support import ssd_implementation
from zoo.kernels.native import in_rows
from zoo.kernels.operator import Like, define
from zoo.kernels.ssd import chunked, native, native_step, reference
from zoo.kernels.triton_support import triton_implementation


class SSDOutput(NamedTuple):
    """Output in the dtype and shape of x; final state in float32 (float64 for float64 inputs)."""

    output: Tensor
    final_state: Tensor


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    chunk_size: int = 64,
    impl: str = "auto",
) -> SSDOutput:
    r"""Linear recurrence with one scalar decay a head and a matrix state (Mamba-2).

    .. math::
        h_t = \exp(\Delta_t A) h_{t-1} + \Delta_t x_t B_t^\top, \quad y_t = h_t C_t + D x_t

    with :math:`\Delta_t = \mathrm{clamp}(\mathrm{softplus}(dt_t + dt\_bias))` when ``dt_softplus``.

    Args:
        x: input (B, T, H, P), any floating dtype; sums and state are float32 (float64 if any input is float64).
        dt: step size (B, T, H), in the time units of 1 / A.
        A: continuous-time decay rate (H,), negative for a stable system; of any size: where dt A is beyond -1500, -inf
            included, the state is forgotten and no gradient passes. A step of dt = 0 leaves the state as it is.
        B, C: input and output maps (B, T, G, N) for G groups of H / G neighbouring heads.
        D: skip weight (H,) or (H, P).
        dt_bias: (H,), added to dt before the softplus.
        dt_limit: smallest and largest step size, applied last.
        initial_state: (B, H, P, N), continues the sequence that the first token belongs to; zeros when None.
        seq_idx: (B, T) integers; the state restarts from zero where the value changes (packed sequences).
        chunk_size: steps a chunk; changes time and memory, not the result.
        impl: "auto" or the name of an implementation ("triton", "native", "chunked", "reference", "mamba_ssm"). A
            single time step is the recurrence itself and has one implementation.

    Returns:
        SSDOutput(output (B, T, H, P), final_state (B, H, P, N)), both differentiable.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together, a chunk size below 1 or a swapped dt_limit.
        RuntimeError: when the named implementation cannot run on the device of x.

    Paper: Dao and Gu, "Transformers are SSMs", arXiv 2405.21060.
    """
    _check(x, dt, A, B, C, D, dt_bias, dt_limit, initial_state, seq_idx, chunk_size, impl)
    if (
        x.shape[1] == 1
        and initial_state is not None
        and _is_native_step(impl, x, dt, A, B, C, D, dt_bias, initial_state)
    ):
        return SSDOutput(*native_step.forward(x, dt, A, B, C, D, dt_bias, dt_softplus, dt_limit, initial_state))
    dtype = compute_dtype(x, dt, A, B, C)
    dt, A = dt.to(dtype), A.to(dtype).clamp(min=1e-8 * torch.finfo(dtype).min)  # -inf 0 is no number
    if dt_bias is not None:
        dt = dt + dt_bias
    if dt_softplus:
        dt = F.softplus(dt)
    if dt_limit != (0.0, float("inf")):
        dt = dt.clamp(*dt_limit)
    batch, _, heads, head_dim = x.shape
    state = initial(initial_state, (batch, heads, head_dim, B.shape[-1]), x, dtype)
    if x.shape[1] == 1:
        y, state = reference.step(*(t.to(dtype) for t in (x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], state)))
        y = y[:, None].to(x.dtype)
    else:
        y, state = _ssd(x, dt, A, B, C, state, sequence_starts(seq_idx), chunk_size, impl)
    if D is not None:
        y = torch.addcmul(y, x, (D if D.dim() == 2 else D[:, None]).to(dtype)).to(x.dtype)
    return SSDOutput(y, state)


def _is_native_step(impl: str, x: Tensor, *others: Tensor | None) -> bool:
    state = others[-1]
    ready = state is not None and state.dtype == torch.float32 and state.is_contiguous() and state.numel() > 0
    return ready and is_plain_step(operation.choice(impl), x, *others) and native_step.obstacle(x.device) is None


operation = Operation(
    "ssd",
    triton_implementation("zoo.kernels.ssd.triton"),
    Implementation("native", native.forward, native.backward, native.obstacle, prepare=in_rows),
    Implementation("chunked", chunked.forward),
    Implementation("reference", reference.forward),
    ssd_implementation(),
)


def _shapes(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    starts: Tensor | None,
    chunk_size: int,
) -> tuple[Like, Like]:
    return Like(x), Like(state)


def _flops(x, dt, A, B, *_) -> int:
    """Of the recurrence, whatever the chunk size: input (1), update (2) and output (2) for each state and step."""
    return 5 * prod(x) * B[3]


_ssd = define(operation, "x dt A B C state", _shapes, flops=_flops)


def _check(x, dt, A, B, C, D, dt_bias, dt_limit, initial_state, seq_idx, chunk_size, impl) -> None:
    sizes = Sizes("ssd")
    sizes.check("BTHP", x=x)
    sizes.check("H", A=A)
    sizes.check("BTGN", B=B, C=C)
    sizes.check("BTH", dt=dt)
    sizes.check("HP" if D is not None and D.dim() == 2 else "H", D=D)
    sizes.check("H", dt_bias=dt_bias)
    sizes.check("BHPN", initial_state=initial_state)
    sizes.check("BT", seq_idx=seq_idx)
    operation.check(
        impl, {"seq_idx": seq_idx}, x=x, dt=dt, A=A, B=B, C=C, D=D, dt_bias=dt_bias, initial_state=initial_state
    )
    length, groups, heads = sizes["T"], sizes["G"], sizes["H"]
    if length == 0 or heads % groups or chunk_size < 1:
        raise ValueError(
            "ssd: T and chunk_size must be at least 1 and the groups must divide the heads, got "
            f"T {length}, chunk_size {chunk_size}, {groups} groups, {heads} heads"
        )
    if not dt_limit[0] <= dt_limit[1]:
        raise ValueError(f"ssd: dt_limit must be (smallest, largest), got {dt_limit}")
