"""The short causal depthwise convolution of the Mamba family, dispatched and registered as one torch operator."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.causal_conv1d import native, native_step, reference, shifted
from zoo.kernels.dispatch import (
    Implementation,
    Operation,
    Sizes,
    check_shape,
    compute_dtype,
    is_plain_step,
    sequence_starts,
)
from zoo.kernels.mamba_ssm_support import causal_conv1d_implementation
from zoo.kernels.native import in_rows
from zoo.kernels.operator import Like, define
from zoo.kernels.triton_support import triton_implementation


class ConvOutput(NamedTuple):
    """Output and final state (the newest W - 1 inputs), both in the dtype of x."""

    output: Tensor
    final_state: Tensor


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    impl: str = "auto",
) -> ConvOutput:
    r"""Depthwise convolution that sees the present and the W - 1 inputs before it.

    .. math:: y_t = f\Big(b + \sum_{k=0}^{W-1} w_k \, x_{t-W+1+k}\Big)

    Args:
        x: input (B, T, D), any floating dtype; sums are kept in float32 (float64 if any input is float64).
        weight: (D, W); weight[:, -1] multiplies the present input.
        bias: (D,).
        activation: None or "silu".
        initial_state: (B, W - 1, D), the inputs before the first, oldest first; zeros when None. They belong to the
            first token's sequence.
        seq_idx: (B, T) integers; no tap reaches across a change of the value (packed sequences).
        impl: "auto" or the name of an implementation ("triton", "native", "shifted", "reference", "mamba_ssm").

    Returns:
        ConvOutput(output (B, T, D), final_state (B, W - 1, D)); inputs of an earlier packed sequence are zero in it.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together, or an unknown activation.
        RuntimeError: when the named implementation cannot run on the device of x.
    """
    _check(x, weight, bias, activation, initial_state, seq_idx, impl)
    state = x.new_zeros(x.shape[0], weight.shape[1] - 1, x.shape[2]) if initial_state is None else initial_state
    plain = x.shape[1] == 1 and x.numel() and is_plain_step(operation.choice(impl), x, weight, bias, state)
    if plain and native_step.obstacle(x.device) is None:
        y, state = native_step.forward(x, weight, bias, state.to(x.dtype), activation == "silu")
    elif x.shape[1] == 1:
        history = torch.cat([state.to(x.dtype), x], dim=1)
        wide, state = compute_dtype(x, weight), history[:, 1:]
        y = (history.mT.to(wide) * weight.to(wide)).sum(-1).unsqueeze(1)
        y = y if bias is None else y + bias.to(wide)
        y = (F.silu(y) if activation == "silu" else y).to(x.dtype)
    else:
        y, state = _conv(x, weight, bias, state.to(x.dtype), sequence_starts(seq_idx), activation == "silu", impl)
    return ConvOutput(y, state)


operation = Operation(
    "causal_conv1d",
    triton_implementation("zoo.kernels.causal_conv1d.triton"),
    Implementation("native", native.forward, native.backward, native.obstacle, prepare=in_rows),
    Implementation("shifted", shifted.forward, shifted.backward),
    Implementation("reference", reference.forward),
    causal_conv1d_implementation(),
)


def _shapes(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, starts: Tensor | None, silu: bool
) -> tuple[Like, Like]:
    return Like(x), Like(state)


def _flops(x, weight, *_) -> int:
    return 2 * x[0] * x[1] * prod(weight)


_conv = define(operation, "x weight bias state", _shapes, flops=_flops)


def _check(x, weight, bias, activation, initial_state, seq_idx, impl) -> None:
    sizes = Sizes("causal_conv1d")
    sizes.check("BTD", x=x)
    sizes.check("DW", weight=weight)
    sizes.check("D", bias=bias)
    sizes.check("BT", seq_idx=seq_idx)
    batch, length, dim = x.shape
    check_shape("causal_conv1d", "initial_state", initial_state, "(B, W - 1, D)", batch, weight.shape[1] - 1, dim)
    operation.check(impl, {"seq_idx": seq_idx}, x=x, weight=weight, bias=bias, initial_state=initial_state)
    if length == 0 or weight.shape[1] < 2:
        raise ValueError(
            f"causal_conv1d: T must be at least 1 and the width at least 2, got T {length}, width {weight.shape[1]}"
        )
    if activation not in (None, "silu"):
        raise ValueError(f"causal_conv1d: activation must be None or 'silu', got {activation!r}")
