"""Linear attention, dispatched over its implementations and registered as one torch operator."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.kernels.autograd import recomputed_gradients
from zoo.kernels.dispatch import (
    Implementation,
    Operation,
    check_floating,
    check_shape,
    compute_dtype,
    full_precision,
    sequence_starts,
)
from zoo.kernels.linear_attention import chunked, reference
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
        log_decay: (B, T, H) or (B, T, H, K), at most 0 for a stable state, -inf to forget it; applied before step
            t's input is added.
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
    _check(q, k, v, log_decay, initial_state, seq_idx, chunk_size)
    dtype = compute_dtype(q, k, v, log_decay)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    batch, length, heads, key_dim = q.shape
    state = (
        q.new_zeros(batch, heads, key_dim, v.shape[-1], dtype=dtype)
        if initial_state is None
        else initial_state.to(dtype)
    )
    if length == 1:
        decay = None if log_decay is None else log_decay[:, 0].to(dtype)
        now = (t[:, 0].to(dtype) for t in (q, k, v))
        with full_precision(q.device):
            y, state = reference.step(*now, decay, state, scale)  # pyright: ignore[reportCallIssue]
        return LinearAttentionOutput(y[:, None].to(v.dtype), state)
    starts = sequence_starts(seq_idx)
    return LinearAttentionOutput(*_linear_attention(q, k, v, log_decay, state, starts, scale, chunk_size, impl))


def _reference_backward(dy, dstate, *inputs) -> list[Tensor]:
    *tensors, scale, chunk_size = inputs
    return recomputed_gradients(partial(reference.forward, scale=scale, chunk_size=chunk_size), tensors, (dy, dstate))


operation = Operation(
    "linear_attention",
    triton_implementation("zoo.kernels.linear_attention.triton"),
    Implementation("chunked", chunked.forward, chunked.backward),
    Implementation("reference", reference.forward, _reference_backward),
)


@torch.library.custom_op("zoo::linear_attention", mutates_args=())
def _linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    scale: float,
    chunk_size: int,
    impl: str,
) -> tuple[Tensor, Tensor]:
    chosen = operation.resolve(impl, q.device)
    tensors = chosen.prepare(state.dtype, q, k, v, log_decay, state, starts)
    y, final = chosen.forward(*tensors, scale, chunk_size)
    return y.to(v.dtype).contiguous(), final.contiguous()


@torch.library.custom_op("zoo::linear_attention_backward", mutates_args=())
def _linear_attention_backward(
    dy: Tensor,
    dstate: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    scale: float,
    chunk_size: int,
    impl: str,
) -> list[Tensor]:
    chosen = operation.resolve(impl, q.device)
    tensors = chosen.prepare(state.dtype, dy, dstate, q, k, v, log_decay, state, starts)
    gradients = chosen.backward(*tensors, scale, chunk_size)
    inputs = _differentiable(q, k, v, log_decay, state)
    return [g.to(i.dtype).contiguous() for g, i in zip(gradients, inputs, strict=True)]


@_linear_attention.register_fake
def _(q, k, v, log_decay, state, starts, scale, chunk_size, impl):
    return v.new_empty(v.shape), state.new_empty(state.shape)


@_linear_attention_backward.register_fake
def _(dy, dstate, q, k, v, log_decay, state, starts, scale, chunk_size, impl):
    return [t.new_empty(t.shape) for t in _differentiable(q, k, v, log_decay, state)]


def _differentiable(*tensors: Tensor | None) -> list[Tensor]:
    return [t for t in tensors if t is not None]


def _setup_context(ctx, inputs, output):
    *tensors, ctx.scale, ctx.chunk_size, ctx.impl = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy, dstate):
    gradients = _linear_attention_backward(dy, dstate, *ctx.saved_tensors, ctx.scale, ctx.chunk_size, ctx.impl)
    dq, dk, dv, *ddecay, dinitial = gradients
    return dq, dk, dv, ddecay[0] if ddecay else None, dinitial, None, None, None, None


_linear_attention.register_autograd(_backward, setup_context=_setup_context)


def _check(q, k, v, log_decay, initial_state, seq_idx, chunk_size) -> None:
    check = partial(check_shape, "linear_attention")
    check("q", q, "(B, T, H, K)", None, None, None, None)
    batch, length, heads, key_dim = q.shape
    check("k", k, "(B, T, H, K)", batch, length, heads, key_dim)
    check("v", v, "(B, T, H, V)", batch, length, heads, None)
    if log_decay is not None and log_decay.dim() == 4:
        check("log_decay", log_decay, "(B, T, H, K)", batch, length, heads, key_dim)
    else:
        check("log_decay", log_decay, "(B, T, H)", batch, length, heads)
    check("initial_state", initial_state, "(B, H, K, V)", batch, heads, key_dim, v.shape[-1])
    check("seq_idx", seq_idx, "(B, T)", batch, length)
    check_floating("linear_attention", q=q, k=k, v=v, log_decay=log_decay, initial_state=initial_state)
    if length == 0 or chunk_size < 1:
        raise ValueError(
            f"linear_attention: T and chunk_size must be at least 1, got T {length}, chunk_size {chunk_size}"
        )
