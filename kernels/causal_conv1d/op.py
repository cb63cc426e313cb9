"""The short causal depthwise convolution of the Mamba family, dispatched and registered as one torch operator."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.autograd import recomputed_gradients
from zoo.kernels.causal_conv1d import native, reference, shifted
from zoo.kernels.dispatch import (
    Implementation,
    Operation,
    check_floating,
    check_shape,
    compute_dtype,
    sequence_starts,
)
from zoo.kernels.mamba_ssm_support import causal_conv1d_implementation
from zoo.kernels.native import in_rows
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
        weight: (D, W); weight[:, -1] multiplies the present input. bias: (D,).
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
    _check(x, weight, bias, activation, initial_state, seq_idx)
    state = x.new_zeros(x.shape[0], weight.shape[1] - 1, x.shape[2]) if initial_state is None else initial_state
    if x.shape[1] == 1:
        history = torch.cat([state.to(x.dtype), x], dim=1)
        wide, state = compute_dtype(x, weight), history[:, 1:]
        y = (history.mT.to(wide) * weight.to(wide)).sum(-1).unsqueeze(1)
        y = y if bias is None else y + bias.to(wide)
        y = (F.silu(y) if activation == "silu" else y).to(x.dtype)
    else:
        y, state = _conv(x, weight, bias, state.to(x.dtype), sequence_starts(seq_idx), activation == "silu", impl)
    return ConvOutput(y, state)


def _reference_backward(dy, dstate, x, weight, bias, state, starts, silu) -> list[Tensor]:
    bias = weight.new_zeros(x.shape[2]) if bias is None else bias
    return recomputed_gradients(partial(reference.forward, silu=silu), (x, weight, bias, state, starts), (dy, dstate))


operation = Operation(
    "causal_conv1d",
    triton_implementation("zoo.kernels.causal_conv1d.triton"),
    Implementation("native", native.forward, native.backward, native.obstacle, prepare=in_rows),
    Implementation("shifted", shifted.forward, shifted.backward),
    Implementation("reference", reference.forward, _reference_backward),
    causal_conv1d_implementation(),
)


@torch.library.custom_op("zoo::causal_conv1d", mutates_args=())
def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, starts: Tensor | None, silu: bool, impl: str
) -> tuple[Tensor, Tensor]:
    chosen = operation.resolve(impl, x.device)
    y, final = chosen.forward(*chosen.prepare(compute_dtype(x, weight), x, weight, bias, state, starts), silu)
    return y.to(x.dtype).contiguous(), final.to(x.dtype).clone(memory_format=torch.contiguous_format)


@torch.library.custom_op("zoo::causal_conv1d_backward", mutates_args=())
def _conv_backward(
    dy: Tensor,
    dstate: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    silu: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    chosen = operation.resolve(impl, x.device)
    tensors = chosen.prepare(compute_dtype(x, weight), dy, dstate, x, weight, bias, state, starts)
    dx, dweight, dbias, dinitial = chosen.backward(*tensors, silu)
    bias_dtype = weight.dtype if bias is None else bias.dtype
    return (
        dx.to(x.dtype).contiguous(),
        dweight.to(weight.dtype),
        dbias.to(bias_dtype),
        dinitial.to(state.dtype).clone(memory_format=torch.contiguous_format),
    )


@_conv.register_fake
def _(x, weight, bias, state, starts, silu, impl):
    return x.new_empty(x.shape), state.new_empty(state.shape)


@_conv_backward.register_fake
def _(dy, dstate, x, weight, bias, state, starts, silu, impl):
    dbias = (weight if bias is None else bias).new_empty(x.shape[2])
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dbias, state.new_empty(state.shape)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.silu, ctx.impl = inputs
    ctx.has_bias = tensors[2] is not None
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy, dstate):
    dx, dweight, dbias, dinitial = _conv_backward(dy, dstate, *ctx.saved_tensors, ctx.silu, ctx.impl)
    return dx, dweight, dbias if ctx.has_bias else None, dinitial, None, None, None


_conv.register_autograd(_backward, setup_context=_setup_context)


def _check(x, weight, bias, activation, initial_state, seq_idx) -> None:
    check = partial(check_shape, "causal_conv1d")
    check("x", x, "(B, T, D)", None, None, None)
    batch, length, dim = x.shape
    check("weight", weight, "(D, W)", dim, None)
    check("bias", bias, "(D,)", dim)
    check("initial_state", initial_state, "(B, W - 1, D)", batch, weight.shape[1] - 1, dim)
    check("seq_idx", seq_idx, "(B, T)", batch, length)
    check_floating("causal_conv1d", x=x, weight=weight, bias=bias, initial_state=initial_state)
    if length == 0 or weight.shape[1] < 2:
        raise ValueError(
            f"causal_conv1d: T must be at least 1 and the width at least 2, got T {length}, width {weight.shape[1]}"
        )
    if activation not in (None, "silu"):
        raise ValueError(f"causal_conv1d: activation must be None or 'silu', got {activation!r}")
