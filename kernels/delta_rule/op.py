"""The delta rule, dispatched over its implementations and registered as one torch operator."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from torch import Tensor

from zoo.kernels.delta_rule import chunked, native, reference
from zoo.kernels.dispatch import (
    Implementation,
    Operation,
    Sizes,
    compute_dtype,
    full_precision,
    initial,
    sequence_starts,
)
from zoo.kernels.operator import Like, define
from zoo.kernels.triton_support import triton_implementation


class DeltaRuleOutput(NamedTuple):
    """Output in the dtype and shape of v; final state in float32 (float64 for float64 inputs)."""

    output: Tensor
    final_state: Tensor


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    log_decay: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    chunk_size: int = 64,
    impl: str = "auto",
) -> DeltaRuleOutput:
    r"""Linear attention whose state corrects what it returns for a key, instead of adding to it (DeltaNet).

    .. math::
        S_t = (I - \beta_t k_t k_t^\top) \, \mathrm{diag}(\exp g_t) \, S_{t-1} + \beta_t k_t v_t^\top, \quad
        o_t = \mathrm{scale} \cdot S_t^\top q_t

    with :math:`g_t` the ``log_decay``: 0 when None (DeltaNet), one number a head (Gated DeltaNet) or one a key channel
    (Kimi Delta Attention). The decayed state predicts v from k, and beta is
    the step towards the v that came: 1 stores exactly v where k has norm 1. No feature map is applied to q and k and
    nothing is normalised: that is the caller's part, and beyond :math:`\beta_t |k_t|^2 \le 2` the state can grow
    without bound.

    Args:
        q, k: queries and keys (B, T, H, K), any floating dtype; sums and state are float32 (float64 if any of q, k, v,
            beta and log_decay is float64).
        v: values (B, T, H, V).
        beta: step size (B, T, H), usually in [0, 1] or [0, 2].
        log_decay: (B, T, H) or (B, T, H, K), at most 0 for a stable state, -inf to forget it.
        scale: factor of the output; K^-0.5 when None.
        initial_state: (B, H, K, V), continues the sequence that the first token belongs to; zeros when None.
        seq_idx: (B, T) integers; the state restarts from zero where the value changes (packed sequences).
        chunk_size: steps a chunk; changes time and memory, not the result.
        impl: "auto" or the name of an implementation ("triton", "native", "chunked", "reference"). A single time
            step is the recurrence itself and has one implementation.

    Returns:
        DeltaRuleOutput(output (B, T, H, V), final_state (B, H, K, V)), both differentiable.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together, or a chunk size below 1.
        RuntimeError: when the named implementation cannot run on the device of q.

    Papers: Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", arXiv 2406.06484;
    Yang, Kautz and Hatamizadeh, "Gated Delta Networks", arXiv 2412.06464 (a decay a head); Kimi Team, "Kimi Linear: An
    Expressive, Efficient Attention Architecture", arXiv 2510.26692 (a decay a key channel).
    """
    _check(q, k, v, beta, log_decay, initial_state, seq_idx, chunk_size, impl)
    dtype = compute_dtype(q, k, v, beta, log_decay)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    batch, length, heads, key_dim = q.shape
    state = initial(initial_state, (batch, heads, key_dim, v.shape[-1]), q, dtype)
    if length == 1:
        decay = None if log_decay is None else log_decay[:, 0].to(dtype)
        now = (t[:, 0].to(dtype) for t in (q, k, v, beta))
        with full_precision(q.device):
            y, state = reference.step(*now, decay, state, scale)  # pyright: ignore[reportCallIssue]
        return DeltaRuleOutput(y[:, None].to(v.dtype), state)
    starts = sequence_starts(seq_idx)
    return DeltaRuleOutput(*_delta_rule(q, k, v, beta, log_decay, state, starts, scale, chunk_size, impl))


operation = Operation(
    "delta_rule",
    triton_implementation("zoo.kernels.delta_rule.triton"),
    Implementation("native", native.forward, native.backward, native.obstacle),
    Implementation("chunked", chunked.forward),
    Implementation("reference", reference.forward),
)


def _shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    scale: float,
    chunk_size: int,
) -> tuple[Like, Like]:
    return Like(v), Like(state)


def _flops(q, k, v, *_) -> int:
    """Of the recurrence: what the key reads (2), update (2) and output (2) for each state and step."""
    return 6 * prod(q) * v[3]


_delta_rule = define(operation, "q k v beta log_decay state", _shapes, flops=_flops)


def _check(q, k, v, beta, log_decay, initial_state, seq_idx, chunk_size, impl) -> None:
    sizes = Sizes("delta_rule")
    sizes.check("BTHK", q=q, k=k)
    sizes.check("BTHV", v=v)
    sizes.check("BTH", beta=beta)
    sizes.check("BTHK" if log_decay is not None and log_decay.dim() == 4 else "BTH", log_decay=log_decay)
    sizes.check("BHKV", initial_state=initial_state)
    sizes.check("BT", seq_idx=seq_idx)
    operation.check(
        impl, {"seq_idx": seq_idx}, q=q, k=k, v=v, beta=beta, log_decay=log_decay, initial_state=initial_state
    )
    sizes.check_chunks(chunk_size)
