"""The mLSTM's recurrence, dispatched over its implementations and registered as one torch operator."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from torch import Tensor

from zoo.kernels.dispatch import (
    Implementation,
    Operation,
    Sizes,
    as_given,
    compute_dtype,
    full_precision,
    initial,
    sequence_starts,
)
from zoo.kernels.mlstm import chunked, reference
from zoo.kernels.operator import Like, define
from zoo.kernels.triton_support import obstacle


class MLSTMOutput(NamedTuple):
    """Output in the dtype and shape of v; the state after the last step in float32 (float64 for float64 inputs)."""

    output: Tensor
    memory: Tensor
    normalizer: Tensor
    stabilizer: Tensor


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_input: Tensor,
    log_decay: Tensor,
    *,
    scale: float | None = None,
    eps: float = 1e-6,
    memory: Tensor | None = None,
    normalizer: Tensor | None = None,
    stabilizer: Tensor | None = None,
    seq_idx: Tensor | None = None,
    chunk_size: int = 64,
    impl: str = "auto",
) -> MLSTMOutput:
    r"""A matrix memory that gates fill and empty, read relative to a normaliser, and held at exp(-m) of its value.

    .. math::
        m_t &= \max(g_t + m_{t-1}, a_t), \quad f_t = \exp(g_t + m_{t-1} - m_t), \quad i_t = \exp(a_t - m_t) \\
        C_t &= f_t C_{t-1} + i_t k_t v_t^\top, \quad n_t = f_t n_{t-1} + i_t k_t \\
        h_t &= \frac{\mathrm{scale} \cdot C_t^\top q_t}
                    {\max(|\mathrm{scale} \cdot n_t^\top q_t|, \exp(-m_t)) + \mathrm{eps}}

    with a the ``log_input`` and g the ``log_decay``, of an exponential input gate and of a sigmoid (its logsigmoid) or
    exponential forget gate. h does not depend on m but for eps, which counts relative to the memory as it is held.

    Args:
        q, k: queries and keys (B, T, H, K), any floating dtype; sums and state are float32 (float64 if any of q, k, v
            and the gates is float64).
        v: values (B, T, H, V).
        log_input: logarithm a of the input gate (B, T, H), -inf for no input.
        log_decay: logarithm g of the forget gate (B, T, H), -inf to forget the memory; applied before step t's input
            is added.
        scale: factor of the queries; K^-0.5 when None.
        eps: added to what is divided by.
        memory, normalizer, stabilizer: the state C (B, H, K, V), n (B, H, K) and m (B, H), all or none; it continues
            the sequence that the first token belongs to. Zeros when None.
        seq_idx: (B, T) integers; the state restarts from zero where the value changes (packed sequences).
        chunk_size: steps a chunk; changes time and memory, not the result.
        impl: "auto" or the name of an implementation ("triton", "chunked", "reference"). A single time step is the
            recurrence itself and has one implementation.

    Returns:
        MLSTMOutput(output h (B, T, H, V), memory, normalizer, stabilizer), all differentiable. The stabilizer is kept
        at -80 or more: a memory of exp(-80) and none give the same output.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together, a state in part, or a chunk size below 1.
        RuntimeError: when the named implementation cannot run on the device of q.

    Papers: Beck et al., "xLSTM: Extended Long Short-Term Memory", arXiv 2405.04517, section 2.3 and appendix A; "xLSTM
    7B", arXiv 2503.13427.
    """
    given = memory, normalizer, stabilizer
    _check(q, k, v, log_input, log_decay, *given, seq_idx, chunk_size, impl)
    dtype = compute_dtype(q, k, v, log_input, log_decay)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    batch, length, heads, key_dim = q.shape
    shapes = (batch, heads, key_dim, v.shape[-1]), (batch, heads, key_dim), (batch, heads)
    state = [initial(part, shape, q, dtype) for part, shape in zip(given, shapes, strict=True)]
    if length == 1:
        now = (t[:, 0].to(dtype) for t in (q, k, v, log_input, log_decay))
        with full_precision(q.device):
            h, *state = reference.step(*now, *state, scale, eps)  # pyright: ignore[reportCallIssue]
        return MLSTMOutput(h[:, None].to(v.dtype), *state)
    starts = sequence_starts(seq_idx)
    return MLSTMOutput(*_mlstm(q, k, v, log_input, log_decay, *state, starts, scale, float(eps), chunk_size, impl))


operation = Operation(
    "mlstm",
    Implementation(
        "triton", chunked.forward_triton, None, obstacle, lambda device: device.type == "cuda", prepare=as_given
    ),
    Implementation("chunked", chunked.forward),
    Implementation("reference", reference.forward),
)


def _shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_input: Tensor,
    log_decay: Tensor,
    memory: Tensor,
    normalizer: Tensor,
    stabilizer: Tensor,
    starts: Tensor | None,
    scale: float,
    eps: float,
    chunk_size: int,
) -> tuple[Like, Like, Like, Like]:
    return Like(v), Like(memory), Like(normalizer), Like(stabilizer)


def _flops(q, k, v, *_) -> int:
    """Of the recurrence: update (2) and output (2) for each number of the memory and the normaliser, and step."""
    return 4 * prod(q) * (v[3] + 1)


_mlstm = define(operation, "q k v log_input log_decay memory normalizer stabilizer", _shapes, flops=_flops)


def _check(q, k, v, log_input, log_decay, memory, normalizer, stabilizer, seq_idx, chunk_size, impl) -> None:
    sizes = Sizes("mlstm")
    sizes.check("BTHK", q=q, k=k)
    sizes.check("BTHV", v=v)
    sizes.check("BTH", log_input=log_input, log_decay=log_decay)
    sizes.check("BHKV", memory=memory)
    sizes.check("BHK", normalizer=normalizer)
    sizes.check("BH", stabilizer=stabilizer)
    sizes.check("BT", seq_idx=seq_idx)
    state = {"memory": memory, "normalizer": normalizer, "stabilizer": stabilizer}
    operation.check(impl, {"seq_idx": seq_idx}, q=q, k=k, v=v, log_input=log_input, log_decay=log_decay, **state)
    missing = [name for name, part in state.items() if part is None]
    if 0 < len(missing) < len(state):
        raise ValueError(f"mlstm: the state is memory, normalizer and stabilizer, all or none; got no {missing}")
    sizes.check_chunks(chunk_size)
