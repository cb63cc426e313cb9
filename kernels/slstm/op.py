"""The sLSTM's recurrence, dispatched over its implementations and registered as one torch operator."""

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
from zoo.kernels.operator import Like, define
from zoo.kernels.slstm import native, reference


class SLSTMOutput(NamedTuple):
    """Output in the dtype of x; final state in float32 (float64 for float64 inputs)."""

    output: Tensor
    final_state: Tensor


def slstm(
    x: Tensor,
    R: Tensor,
    *,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    impl: str = "auto",
) -> SLSTMOutput:
    r"""An LSTM with an exponential input gate, whose memory is read relative to a normaliser.

    .. math::
        \tilde\imath, \tilde f, \tilde z, \tilde o &= x_t + R h_{t-1}, \quad
        m_t = \max(\log \sigma(\tilde f) + m_{t-1}, \tilde\imath) \\
        f_t &= \exp(\log \sigma(\tilde f) + m_{t-1} - m_t), \quad i_t = \exp(\tilde\imath - m_t) \\
        c_t &= f_t c_{t-1} + i_t \tanh \tilde z, \quad n_t = f_t n_{t-1} + i_t, \quad
        h_t = \sigma(\tilde o) \, c_t / n_t

    Each channel has a memory of its own, and each head's gates see the outputs of that head. Where n is 0 nothing has
    been written: m starts as the first input gate. h does not depend on m.

    Args:
        x: what the step's input adds to the logits of the gates i, f, z and o, biases included, (B, T, 4, H, D), any
            floating dtype; the state is kept in float32 (float64 if x or R is float64).
        R: recurrent weights (H, D, 4, D), from the channels of h to those of the gates.
        initial_state: h, c, n and m (B, 4, H, D), continues the sequence that the first token belongs to; zeros when
            None.
        seq_idx: (B, T) integers; the state restarts from zero where the value changes (packed sequences).
        impl: "auto" or the name of an implementation ("native", "reference"). A single time step is the recurrence
            itself and has one implementation.

    Returns:
        SLSTMOutput(output h (B, T, H, D), final_state (B, 4, H, D)), both differentiable.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together.
        RuntimeError: when the named implementation cannot run on the device of x.

    Paper: Beck et al., "xLSTM: Extended Long Short-Term Memory", arXiv 2405.04517, section 2.2 and appendix A.
    """
    _check(x, R, initial_state, seq_idx, impl)
    dtype = compute_dtype(x, R)
    state = initial(initial_state, (x.shape[0], *x.shape[2:]), x, dtype)
    if x.shape[1] == 1:
        with full_precision(x.device):
            state = reference.step(x[:, 0].to(dtype), R.to(dtype), state)
        return SLSTMOutput(state[:, None, 0].to(x.dtype), state)
    return SLSTMOutput(*_slstm(x, R, state, sequence_starts(seq_idx), impl))


operation = Operation(
    "slstm",
    Implementation("native", native.forward, native.backward, native.obstacle),
    Implementation("reference", reference.forward),
)


def _shapes(x: Tensor, R: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Like, Like]:
    return Like(x, (*x.shape[:2], *x.shape[3:])), Like(state)


def _flops(x, R, *_) -> int:
    """Of the recurrent weights (2 for each), and about 5 for each logit."""
    return prod(x) * (2 * x[4] + 5)


_slstm = define(operation, "x R state", _shapes, flops=_flops)


def _check(x, R, initial_state, seq_idx, impl) -> None:
    sizes = Sizes("slstm")
    sizes.check("BT4HD", x=x)
    sizes.check("HD4D", R=R)
    sizes.check("B4HD", initial_state=initial_state)
    sizes.check("BT", seq_idx=seq_idx)
    operation.check(impl, {"seq_idx": seq_idx}, x=x, R=R, initial_state=initial_state)
    if sizes["T"] == 0:
        raise ValueError("slstm: T must be at least 1, got T 0")
