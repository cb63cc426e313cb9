"""Sliding-window attention, dispatched over its implementations and registered as one torch operator."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.dispatch import Implementation, Operation, Sizes, compute_dtype, full_precision, sequence_starts
from zoo.kernels.operator import Like, define
from zoo.kernels.sliding_window_attention import blocked, reference
from zoo.kernels.triton_support import triton_implementation


def sliding_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    sinks: int = 0,
    scale: float | None = None,
    seq_idx: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    r"""Causal softmax attention over the last ``window`` keys, in time and memory linear in T.

    .. math::
        y_i = \sum_{j \in V_i} \frac{\exp(s\, q_i \cdot k_j)}{\sum_{l \in V_i} \exp(s\, q_i \cdot k_l)} v_j, \quad
        V_i = \{j \le i : j > i - window \text{ or } j < sinks\}

    A query sees itself and the ``window - 1`` keys before it; ``window >= S`` is full causal attention.

    Args:
        q: queries (B, T, H, K), any floating dtype; sums and softmax are float32 (float64 if any input is float64).
        k: keys (B, S, G, K) with S >= T: the queries are the last T of the S positions, the keys before them a cache.
        v: values (B, S, G, V). Each of the G heads of k and v serves H / G neighbouring heads of q.
        window: keys a query sees, itself included, in steps.
        sinks: first keys of the sequence that stay visible beyond the window (attention sinks).
        scale: s above; 1 / sqrt(K) when None.
        seq_idx: (B, S) integers; where the value changes another sequence begins, whose queries see none of the keys
            before it (packed sequences). Not together with ``sinks``.
        impl: "auto" or the name of an implementation ("triton", "blocked", "reference"). A single query is one call of
            torch's own attention over the keys it sees, and has one implementation.

    Returns:
        Output (B, T, H, V) in the dtype of q, differentiable in q, k and v.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together, a window below 1, negative sinks, or
            sinks in packed sequences.
        RuntimeError: when the named implementation cannot run on the device of q.

    Papers: Beltagy et al., "Longformer", arXiv 2004.05150; sinks: Xiao et al., "Efficient Streaming Language Models
    with Attention Sinks", arXiv 2309.17453.
    """
    _check(q, k, v, window, sinks, seq_idx, impl)
    length, seen = q.shape[1], q.shape[1] + window - 1
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    if sinks == 0 and k.shape[1] > seen:
        unseen = k.shape[1] - seen
        k, v, seq_idx = k[:, unseen:], v[:, unseen:], None if seq_idx is None else seq_idx[:, unseen:]
    window, first = min(window, k.shape[1]), _first_keys(seq_idx, length)
    if length == 1:
        dtype = q.dtype if q.dtype == k.dtype == v.dtype else compute_dtype(q, k, v)
        with full_precision(q.device):
            return reference.step(q.to(dtype), k.to(dtype), v.to(dtype), first, window, sinks, scale).to(q.dtype)
    return _sliding_window_attention(q, k, v, first, window, min(sinks, k.shape[1]), scale, impl)[0]


operation = Operation(
    "sliding_window_attention",
    triton_implementation("zoo.kernels.sliding_window_attention.triton"),
    Implementation("blocked", blocked.forward, blocked.backward),
    Implementation("reference", reference.forward),
)


def _shapes(
    q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, window: int, sinks: int, scale: float
) -> tuple[Like, Like]:
    """The output, and the logarithms of the softmaxes' sums for the backward."""
    batch, length, heads, _ = q.shape
    return Like(q, (batch, length, heads, v.shape[-1])), Like(q, (batch, heads, length), compute_dtype(q, k, v))


def _flops(q, k, v, first, window, sinks, *_) -> int:
    """Two products for each query and the keys it sees."""
    (batch, length, heads, dim), (keys, value_dim) = q, (k[1], v[3])
    pairs = sum(min(i, window + min(sinks, max(i - window, 0))) for i in range(keys - length + 1, keys + 1))
    return 2 * batch * heads * pairs * (dim + value_dim)


_sliding_window_attention = define(operation, "q k v", _shapes, flops=_flops, extras=1)


def _first_keys(seq_idx: Tensor | None, length: int) -> Tensor | None:
    """Position of the first key of each query's sequence (B, T), of seq_idx (B, S)."""
    starts = sequence_starts(seq_idx)
    if starts is None:
        return None
    position = torch.arange(starts.shape[1], device=starts.device)
    return (starts * position).cummax(1).values[:, starts.shape[1] - length :].contiguous()


def _check(q, k, v, window, sinks, seq_idx, impl) -> None:
    sizes = Sizes("sliding_window_attention")
    sizes.check("BTHK", q=q)
    sizes.check("BSGK", k=k)
    sizes.check("BSGV", v=v)
    sizes.check("BS", seq_idx=seq_idx)
    operation.check(impl, {"seq_idx": seq_idx}, q=q, k=k, v=v)
    length, keys, groups, heads = (sizes[letter] for letter in "TSGH")
    if length == 0 or keys < length or groups == 0 or heads % groups:
        raise ValueError(
            "sliding_window_attention: T must be at least 1 and at most S, and the heads of k must divide those of q, "
            f"got T {length}, S {keys}, {groups} heads of k, {heads} heads of q"
        )
    if window < 1 or sinks < 0 or (sinks and seq_idx is not None):
        raise ValueError(
            "sliding_window_attention: window must be at least 1 and sinks at least 0, and 0 with seq_idx, got "
            f"window {window}, sinks {sinks}{'' if seq_idx is None else ' with seq_idx'}"
        )
