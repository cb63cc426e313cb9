"""Taylor linear attention (BASED), dispatched over its implementations and registered as one torch operator."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from torch import Tensor

from zoo.kernels.dispatch import (
    Implementation,
    Operation,
    Sizes,
    check_shape,
    compute_dtype,
    full_precision,
    initial,
    sequence_starts,
)
from zoo.kernels.operator import Like, define
from zoo.kernels.taylor_attention import chunked, reference
from zoo.kernels.triton_support import triton_implementation


class TaylorAttentionOutput(NamedTuple):
    """Output in the dtype and shape of v; final state in float32 (float64 for float64 inputs)."""

    output: Tensor
    final_state: Tensor


def taylor_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    normalize: bool = True,
    eps: float = 1e-12,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    chunk_size: int = 64,
    impl: str = "auto",
) -> TaylorAttentionOutput:
    r"""Causal attention whose weights are the second-order Taylor polynomial of the softmax's exponentials (BASED).

    .. math::
        o_t = \frac{\sum_{j \le t} w_{tj} v_j}{\sum_{j \le t} w_{tj} + \epsilon}, \quad
        w_{tj} = 1 + s + \tfrac{1}{2} s^2 = \phi(q_t) \cdot \phi(k_j), \quad s = q_t \cdot k_j / \sqrt{K}

    The weights are at least 1/2. As a recurrence the state is :math:`S_t = S_{t-1} + \phi(k_t) (v_t, 1)^\top`.

    Args:
        q, k: queries and keys (B, T, H, K), any floating dtype; sums and state are float32 (float64 if any of q, k and
            v is float64). The state grows with K^2: K is 16 in the paper, apart from the head size V.
        v: values (B, T, H, V).
        normalize: divide by the sum of the weights; without it the output is the numerator.
        eps: added to the sum of the weights.
        initial_state: (B, H, D, V + 1) for D = (K + 1)(K + 2) / 2, continues the sequence that the first token belongs
            to; zeros when None. Its rows are the features of ``taylor_features``, its last column the sum of phi(k).
        seq_idx: (B, T) integers; the state restarts from zero where the value changes (packed sequences).
        chunk_size: steps a chunk; changes time and memory, not the result.
        impl: "auto" or the name of an implementation ("triton", "chunked", "reference"). A single time step is the
            recurrence itself and has one implementation.

    Returns:
        TaylorAttentionOutput(output (B, T, H, V), final_state (B, H, D, V + 1)), both differentiable.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together, a chunk size below 1 or a negative eps.
        RuntimeError: when the named implementation cannot run on the device of q.

    Paper: Arora et al., "Simple linear attention language models balance the recall-throughput tradeoff", arXiv
    2402.18668.
    """
    _check(q, k, v, eps, initial_state, seq_idx, chunk_size, impl)
    dtype = compute_dtype(q, k, v)
    batch, length, heads, key_dim = q.shape
    state = initial(initial_state, (batch, heads, _features(key_dim), v.shape[-1] + 1), q, dtype)
    if length == 1:
        with full_precision(q.device):
            numerator, total, state = reference.step(*(t.to(dtype) for t in (q[:, 0], k[:, 0], v[:, 0], state)))
        numerator, total = numerator[:, None], total[:, None]
    else:
        numerator, total, state = _taylor_attention(q, k, v, state, sequence_starts(seq_idx), chunk_size, impl)
    output = numerator / (total + eps)[..., None] if normalize else numerator
    return TaylorAttentionOutput(output.to(v.dtype), state)


operation = Operation(
    "taylor_attention",
    triton_implementation("zoo.kernels.taylor_attention.triton"),
    Implementation("chunked", chunked.forward, chunked.backward),
    Implementation("reference", reference.forward),
)


def _shapes(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, starts: Tensor | None, chunk_size: int
) -> tuple[Like, Like, Like]:
    """Numerator and sum of the weights, of which the output is the quotient, and the state."""
    return Like(v, dtype=state.dtype), Like(state, v.shape[:3]), Like(state)


def _flops(q, k, v, state, *_) -> int:
    """Of the recurrence: update (2) and output (2) for each state and step."""
    return 4 * v[0] * v[1] * prod(state[1:])


_taylor_attention = define(operation, "q k v state", _shapes, flops=_flops)


def _features(key_dim: int) -> int:
    return (key_dim + 1) * (key_dim + 2) // 2


def _check(q, k, v, eps, initial_state, seq_idx, chunk_size, impl) -> None:
    sizes = Sizes("taylor_attention")
    sizes.check("BTHK", q=q, k=k)
    sizes.check("BTHV", v=v)
    sizes.check("BT", seq_idx=seq_idx)
    batch, length, heads, key_dim = q.shape
    state = batch, heads, _features(key_dim), v.shape[-1] + 1
    check_shape("taylor_attention", "initial_state", initial_state, "(B, H, (K + 1)(K + 2) / 2, V + 1)", *state)
    operation.check(impl, {"seq_idx": seq_idx}, q=q, k=k, v=v, initial_state=initial_state)
    if length == 0 or chunk_size < 1 or eps < 0:
        raise ValueError(
            "taylor_attention: T and chunk_size must be at least 1 and eps at least 0, got "
            f"T {length}, chunk_size {chunk_size}, eps {eps}"
        )
