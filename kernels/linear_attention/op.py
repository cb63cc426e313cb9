"""Linear attention, dispatched over its implementations and registered as one torch operator."""

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
from zoo.kernels.linear_attention import chunked, reference
from zoo.kernels.operator import Like, define
from zoo.kernels.triton_support import triton_implementation


class LinearAttentionOutput(NamedTuple):
    """Output in the dtype and shape of v; final state in float32 (float64 for float64 inputs)."""

    output: Tensor
    final_state: Tensor


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    chunk_size: int = 64,
    impl: str = "auto",
) -> LinearAttentionOutput:
    r"""Causal attention without softmax: a matrix state that each step decays and adds an outer product to.

    .. math::
        S_t = \mathrm{diag}(\exp g_t) S_{t-1} + k_t v_t^\top, \quad o_t = \mathrm{scale} \cdot S_t^\top q_t

    with :math:`g_t` the ``log_decay``: none (plain linear attention), one number a head (RetNet, Mamba-2) or one a key
    channel (gated linear attention). No feature map is applied to q and k and nothing is normalised: that is the
    caller's part.

    Args:
        q, k: queries and keys (B, T, H, K), any floating dtype; sums and state are float32 (float64 if any of q, k, v
            and log_decay is float64).
        v: values (B, T, H, V).
        log_decay: (B, T, H) or (B, T, H, K), at most 0 for a stable state, -inf to forget it; applied before step t's
            input is added.
        scale: factor of the output; K^-0.5 when None.
        initial_state: (B, H, K, V), continues the sequence that the first token belongs to; zeros when None.
        seq_idx: (B, T) integers; the state restarts from zero where the value changes (packed sequences).
        chunk_size: steps a chunk; changes time and memory, not the result.
        impl: "auto" or the name of an implementation ("triton", "chunked", "reference"). A single time step is the
            recurrence itself and has one implementation.

    Returns:
        LinearAttentionOutput(output (B, T, H, V), final_state (B, H, K, V)), both differentiable.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together, or a chunk size below 1.
        RuntimeError: when the named implementation cannot run on the device of q.

    Papers: Katharopoulos et al., "Transformers are RNNs", arXiv 2006.16236; Sun et al., "Retentive Network", arXiv
    2307.08621 (scalar decay); Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training",
    arXiv 2312.06635 (vector decay, chunked form).
    """
    _check(q, k, v, log_decay, initial_state, seq_idx, chunk_size, impl)
    dtype = compute_dtype(q, k, v, log_decay)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    batch, length, heads, key_dim = q.shape
    state = initial(initial_state, (batch, heads, key_dim, v.shape[-1]), q, dtype)
    if length == 1:
        decay = None if log_decay is None else log_decay[:, 0].to(dtype)
        now = (t[:, 0].to(dtype) for t in (q, k, v))
        with full_precision(q.device):
            y, state = reference.step(*now, decay, state, scale)  # pyright: ignore[reportCallIssue]
        return LinearAttentionOutput(y[:, None].to(v.dtype), state)
    starts = sequence_starts(seq_idx)
    return LinearAttentionOutput(*_linear_attention(q, k, v, log_decay, state, starts, scale, chunk_size, impl))


operation = Operation(
    "linear_attention",
    triton_implementation("zoo.kernels.linear_attention.triton"),
    Implementation("chunked", chunked.forward),
    Implementation("reference", reference.forward),
)


def _shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    scale: float,
    chunk_size: int,
) -> tuple[Like, Like]:
    return Like(v), Like(state)


def _flops(q, k, v, *_) -> int:
    """Of the recurrence: update (2) and output (2) for each state and step."""
    return 4 * prod(q) * v[3]


_linear_attention = define(operation, "q k v log_decay state", _shapes, flops=_flops)


def _check(q, k, v, log_decay, initial_state, seq_idx, chunk_size, impl) -> None:
    sizes = Sizes("linear_attention")
    sizes.check("BTHK", q=q, k=k)
    sizes.check("BTHV", v=v)
    sizes.check("BTHK" if log_decay is not None and log_decay.dim() == 4 else "BTH", log_decay=log_decay)
    sizes.check("BHKV", initial_state=initial_state)
    sizes.check("BT", seq_idx=seq_idx)
    operation.check(impl, {"seq_idx": seq_idx}, q=q, k=k, v=v, log_decay=log_decay, initial_state=initial_state)
    sizes.check_chunks(chunk_size)
