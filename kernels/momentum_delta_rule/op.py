"""The delta rule with momentum, dispatched over its implementations and registered as one torch operator."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from torch import Tensor

from zoo.kernels.dispatch import (
    Implementation,
    Operation,
    Sizes,
    compute_dtype,
    full_precision,
    initial,
    sequence_starts,
)
from zoo.kernels.momentum_delta_rule import chunked, native, reference
from zoo.kernels.operator import Like, define
from zoo.kernels.triton_support import triton_implementation


class MomentumDeltaRuleOutput(NamedTuple):
    """Output in the dtype and shape of v; final state and momentum in float32 (float64 for float64 inputs)."""

    output: Tensor
    final_state: Tensor
    final_momentum: Tensor


def momentum_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    log_decay: Tensor,
    log_momentum: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    initial_momentum: Tensor | None = None,
    seq_idx: Tensor | None = None,
    chunk_size: int = 64,
    impl: str = "auto",
) -> MomentumDeltaRuleOutput:
    r"""A linear memory that goes down the gradient of what it should have returned, with momentum and forgetting.

    .. math::
        S_t = e^{m_t} S_{t-1} + r_t k_t (v_t - M_{t-1}^\top k_t)^\top, \quad
        M_t = e^{g_t} M_{t-1} + S_t, \quad o_t = \mathrm{scale} \cdot M_t^\top q_t

    with g the ``log_decay``, log(1 - alpha), and m the ``log_momentum``, log(eta). The error is of the memory before it
    decays; with m = -inf the step is that of ``delta_rule`` for beta = r exp(-g) and the values v exp(g).

    Args:
        q, k: queries and keys (B, T, H, K), any floating dtype; sums and state are float32 (float64 if any of the
            inputs is float64).
        v: values (B, T, H, V).
        rate: r (B, T, H).
        log_decay, log_momentum: (B, T, H), at most 0 for a stable memory, -inf to forget the memory or the momentum.
        scale: factor of the output; K^-0.5 when None.
        initial_state, initial_momentum: M and S (B, H, K, V), which continue the sequence that the first token belongs
            to; zeros when None.
        seq_idx: (B, T) integers; both restart from zero where the value changes (packed sequences).
        chunk_size: steps a chunk; changes time and memory, not the result.
        impl: "auto" or the name of an implementation ("triton", "native", "chunked", "reference"). A single time step
            is the recurrence itself and has one implementation.

    Returns:
        MomentumDeltaRuleOutput(output (B, T, H, V), final_state, final_momentum (B, H, K, V)), all differentiable.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together, or a chunk size below 1.
        RuntimeError: when the named implementation cannot run on the device of q.

    Paper: Behrouz, Zhong and Mirrokni, "Titans: Learning to Memorize at Test Time", arXiv 2501.00663, equations 13 and
    14 for a memory of one matrix and half of the loss.
    """
    _check(q, k, v, rate, log_decay, log_momentum, initial_state, initial_momentum, seq_idx, chunk_size, impl)
    dtype = compute_dtype(q, k, v, rate, log_decay, log_momentum)
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    batch, length, heads, key_dim = q.shape
    shape = batch, heads, key_dim, v.shape[-1]
    state, momentum = (initial(given, shape, q, dtype) for given in (initial_state, initial_momentum))
    if length == 1:
        q_t, k_t, v_t, rate_t, decay_t, momentum_t = (
            t[:, 0].to(dtype) for t in (q, k, v, rate, log_decay, log_momentum)
        )
        with full_precision(q.device):
            y, *after = reference.step(q_t, k_t, v_t, rate_t, decay_t, momentum_t, state, momentum, factor)
        return MomentumDeltaRuleOutput(y[:, None].to(v.dtype), *after)
    starts = sequence_starts(seq_idx)
    return MomentumDeltaRuleOutput(
        *_momentum_delta_rule(q, k, v, rate, log_decay, log_momentum, state, momentum, starts, factor, chunk_size, impl)
    )


operation = Operation(
    "momentum_delta_rule",
    triton_implementation("zoo.kernels.momentum_delta_rule.triton"),
    Implementation("native", native.forward, native.backward, native.obstacle),
    Implementation("chunked", chunked.forward),
    Implementation("reference", reference.forward),
)


def _shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    log_decay: Tensor,
    log_momentum: Tensor,
    state: Tensor,
    momentum: Tensor,
    starts: Tensor | None,
    scale: float,
    chunk_size: int,
) -> tuple[Like, Like, Like]:
    return Like(v), Like(state), Like(momentum)


def _flops(q, k, v, *_) -> int:
    """Of the recurrence: what the key reads (2), both updates (2 each) and output (2) for each state and step."""
    return 8 * prod(q) * v[3]


_momentum_delta_rule = define(operation, "q k v rate log_decay log_momentum state momentum", _shapes, flops=_flops)


def _check(q, k, v, rate, log_decay, log_momentum, initial_state, initial_momentum, seq_idx, chunk_size, impl) -> None:
    gates = {"rate": rate, "log_decay": log_decay, "log_momentum": log_momentum}
    states = {"initial_state": initial_state, "initial_momentum": initial_momentum}
    sizes = Sizes("momentum_delta_rule")
    sizes.check("BTHK", q=q, k=k)
    sizes.check("BTHV", v=v)
    sizes.check("BTH", **gates)
    sizes.check("BHKV", **states)
    sizes.check("BT", seq_idx=seq_idx)
    operation.check(impl, {"seq_idx": seq_idx}, q=q, k=k, v=v, **gates, **states)
    sizes.check_chunks(chunk_size)
