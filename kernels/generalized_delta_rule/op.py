"""The generalised delta rule, dispatched over its implementations and registered as one torch operator."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
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
from zoo.kernels.generalized_delta_rule import chunked, native, reference
from zoo.kernels.operator import Like, define
from zoo.kernels.triton_support import triton_implementation


class GeneralizedDeltaRuleOutput(NamedTuple):
    """Output in the dtype and shape of v; final state in float32 (float64 for float64 inputs)."""

    output: Tensor
    final_state: Tensor


def generalized_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    log_decay: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    chunk_size: int = 64,
    impl: str = "auto",
) -> GeneralizedDeltaRuleOutput:
    r"""Linear attention whose state is multiplied by a diagonal plus a rank-one matrix at each step (RWKV-7).

    .. math::
        S_t = (\mathrm{diag}(\exp g_t) + b_t a_t^\top) S_{t-1} + k_t v_t^\top, \quad
        o_t = \mathrm{scale} \cdot S_t^\top q_t

    with :math:`g_t` the ``log_decay`` of each key channel. RWKV-7 has :math:`a = -\hat k` and
    :math:`b = \hat k \odot \eta` of a key with norm 1 and steps :math:`\eta` in (0, 1); the delta rule is a = k and
    b = -beta k, with beta k in place of k and no decay. Nothing is normalised: that is the caller's part, and with
    eigenvalues of the transition beyond 1 the state grows without bound.

    Args:
        q, k: queries and keys (B, T, H, K), any floating dtype; sums and state are float32 (float64 if any of q, k, v,
            a, b and log_decay is float64).
        v: values (B, T, H, V).
        a: what reads the state before the step, (B, T, H, K).
        b: where what was read is written to, (B, T, H, K).
        log_decay: (B, T, H, K), at most 0 for a stable state, -inf to forget all of it but what a reads.
        scale: factor of the output; K^-0.5 when None.
        initial_state: (B, H, K, V), continues the sequence that the first token belongs to; zeros when None.
        seq_idx: (B, T) integers; the state restarts from zero where the value changes (packed sequences).
        chunk_size: steps a chunk of "chunked"; changes time and memory, not the result.
        impl: "auto" or the name of an implementation ("triton", "native", "chunked", "reference"). A single time step
            is the recurrence itself in all but "native".

    Returns:
        GeneralizedDeltaRuleOutput(output (B, T, H, V), final_state (B, H, K, V)), both differentiable.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together, or a chunk size below 1.
        RuntimeError: when the named implementation cannot run on the device of q.

    Paper: Peng et al., "RWKV-7 Goose with Expressive Dynamic State Evolution", arXiv 2503.14456.
    """
    _check(q, k, v, a, b, log_decay, initial_state, seq_idx, chunk_size, impl)
    dtype = compute_dtype(q, k, v, a, b, log_decay)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    batch, length, heads, key_dim = q.shape
    state = initial(initial_state, (batch, heads, key_dim, v.shape[-1]), q, dtype)
    if length == 1 and not _in_one_call(impl, q):
        now = (t[:, 0].to(dtype) for t in (q, k, v, a, b, log_decay))
        with full_precision(q.device):
            y, state = reference.step(*now, state, scale)  # pyright: ignore[reportCallIssue]
        return GeneralizedDeltaRuleOutput(y[:, None].to(v.dtype), state)
    inputs = q, k, v, a, b, log_decay, state, sequence_starts(seq_idx), scale, chunk_size, impl
    return GeneralizedDeltaRuleOutput(*_generalized_delta_rule(*inputs))


def _in_one_call(impl: str, q: Tensor) -> bool:
    """Whether a single step is one pass of the C kernel over the state, which in torch takes several. A compiler fuses
    those itself, and what is exported must not depend on the kernel."""
    return not torch.compiler.is_compiling() and operation.resolve(impl, q.device).name == "native"


operation = Operation(
    "generalized_delta_rule",
    triton_implementation("zoo.kernels.generalized_delta_rule.triton"),
    Implementation("native", native.forward, native.backward, native.obstacle),
    Implementation("chunked", chunked.forward),
    Implementation("reference", reference.forward),
)


def _shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    state: Tensor,
    starts: Tensor | None,
    scale: float,
    chunk_size: int,
) -> tuple[Like, Like]:
    return Like(v), Like(state)


def _flops(q, k, v, *_) -> int:
    """Of the recurrence: what a reads (2), both updates (4) and output (2) for each state and step."""
    return 8 * prod(q) * v[3]


_generalized_delta_rule = define(operation, "q k v a b log_decay state", _shapes, flops=_flops)


def _check(q, k, v, a, b, log_decay, initial_state, seq_idx, chunk_size, impl) -> None:
    sizes = Sizes("generalized_delta_rule")
    sizes.check("BTHK", q=q, k=k, a=a, b=b, log_decay=log_decay)
    sizes.check("BTHV", v=v)
    sizes.check("BHKV", initial_state=initial_state)
    sizes.check("BT", seq_idx=seq_idx)
    floating = {"q": q, "k": k, "v": v, "a": a, "b": b, "log_decay": log_decay, "initial_state": initial_state}
    operation.check(impl, {"seq_idx": seq_idx}, **floating)
    sizes.check_chunks(chunk_size)
