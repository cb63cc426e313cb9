"""The memory of the expressive leaky memory neuron, dispatched and registered as one torch operator."""

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
from zoo.kernels.leaky_memory import native, reference
from zoo.kernels.operator import Like, define
from zoo.kernels.triton_support import triton_implementation

ACTIVATIONS = ("relu", "silu")


class LeakyMemoryOutput(NamedTuple):
    """Output in the dtype of x; final state in float32 (float64 for float64 inputs)."""

    output: Tensor
    final_state: Tensor


def leaky_memory(
    x: Tensor,
    W_in: Tensor,
    W_out: Tensor,
    bias: Tensor,
    decay: Tensor,
    gain: Tensor,
    *,
    activation: str = "relu",
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    impl: str = "auto",
) -> LeakyMemoryOutput:
    r"""Leaky units, driven by a network of one hidden layer that sees the input and what they still hold.

    .. math::
        \bar m_t = \kappa \odot m_{t-1}, \quad a_t = \phi(x_t + W_{in}^\top \bar m_t), \quad
        m_t = \bar m_t + g \odot 1.7159 \tanh\big(\tfrac23 (W_{out}^\top a_t + b)\big)

    The decay is diagonal, but the drive is not linear in the memory, so the steps come one after another. Parallel over
    time is what surrounds them: the inputs' part of the hidden layer (x, which the caller has made), and of the
    gradient everything but one chain of two products a step. Parallel within a step are sequences and units.

    Args:
        x: what the inputs add to the hidden units, biases included, (B, T, H), any floating dtype; the state is kept in
            float32 (float64 if any tensor is float64).
        W_in: from the memory to the hidden units, (D, H).
        W_out: from the hidden units to the drive, (H, D).
        bias: of the drive, (D,).
        decay: kappa (D,), what a step keeps, from 0 to 1.
        gain: g (D,).
        activation: phi, "relu" or "silu".
        initial_state: m (B, D), continues the sequence that the first token belongs to; zeros when None.
        seq_idx: (B, T) integers; the state restarts from zero where the value changes (packed sequences).
        impl: "auto" or the name of an implementation ("triton", "native", "reference"). A single time step is the
            recurrence itself and has one implementation.

    Returns:
        LeakyMemoryOutput(output (B, T, D): m of every step, final_state (B, D): the last m), both differentiable.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together, or an unknown activation.
        RuntimeError: when the named implementation cannot run on the device of x.

    Paper: Spieler et al., "The Expressive Leaky Memory Neuron", arXiv 2306.16922, section 2; as in the authors' code.
    """
    _check(x, W_in, W_out, bias, decay, gain, activation, initial_state, seq_idx, impl)
    dtype = compute_dtype(x, W_in, W_out, bias, decay, gain)
    state = initial(initial_state, (x.shape[0], len(decay)), x, dtype)
    smooth = activation == "silu"
    if x.shape[1] == 1:
        W_in, W_out, bias, decay, gain = (w.to(dtype) for w in (W_in, W_out, bias, decay, gain))
        with full_precision(x.device):
            state = reference.step(x[:, 0].to(dtype), W_in, W_out, bias, decay, gain, state, smooth)
        return LeakyMemoryOutput(state[:, None].to(x.dtype), state)
    starts = sequence_starts(seq_idx)
    return LeakyMemoryOutput(*_leaky_memory(x, W_in, W_out, bias, decay, gain, state, starts, smooth, impl))


operation = Operation(
    "leaky_memory",
    triton_implementation("zoo.kernels.leaky_memory.triton"),
    Implementation("native", native.forward, native.backward, native.obstacle),
    Implementation("reference", reference.forward),
)


def _shapes(
    x: Tensor,
    W_in: Tensor,
    W_out: Tensor,
    bias: Tensor,
    decay: Tensor,
    gain: Tensor,
    state: Tensor,
    starts: Tensor | None,
    smooth: bool,
) -> tuple[Like, Like]:
    return Like(x, (*x.shape[:2], state.shape[1])), Like(state)


def _flops(x, W_in, *_) -> int:
    """Of both products (2 for each weight), and about 5 for each unit of the memory."""
    return prod(x[:2]) * (4 * prod(W_in) + 5 * W_in[0])


_leaky_memory = define(operation, "x W_in W_out bias decay gain state", _shapes, flops=_flops)


def _check(x, W_in, W_out, bias, decay, gain, activation, initial_state, seq_idx, impl) -> None:
    sizes = Sizes("leaky_memory")
    sizes.check("BTH", x=x)
    sizes.check("DH", W_in=W_in)
    sizes.check("HD", W_out=W_out)
    sizes.check("D", bias=bias, decay=decay, gain=gain)
    sizes.check("BD", initial_state=initial_state)
    sizes.check("BT", seq_idx=seq_idx)
    tensors = {"x": x, "W_in": W_in, "W_out": W_out, "bias": bias, "decay": decay, "gain": gain}
    operation.check(impl, {"seq_idx": seq_idx}, **tensors, initial_state=initial_state)
    if sizes["T"] == 0:
        raise ValueError("leaky_memory: T must be at least 1, got T 0")
    if activation not in ACTIVATIONS:
        raise ValueError(f"leaky_memory: activation must be one of {ACTIVATIONS}, got {activation!r}")
