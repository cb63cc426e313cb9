"""The operations of mamba-ssm and causal-conv1d, where they are installed: chosen by the name "mamba_ssm" only.

Each function here converts layouts and calls a public function of these packages; the backward runs their forward again
under autograd. What a package cannot do raises a RuntimeError. Their accuracy is their own: mamba-ssm's ssd multiplies
float32 matrices in TF32 and keeps states in the dtype of C, and some gradients are sums by atomics, in any order.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache, partial

import torch
from torch import Tensor

from zoo.kernels.autograd import recomputed_gradients
from zoo.kernels.dispatch import Implementation

NAME = "mamba_ssm"
LARGEST_STATE = 256  # of selective_scan_fn
CONV_WIDTHS = (2, 3, 4)  # of causal_conv1d_fn
PACKAGES = {
    "mamba_ssm": "mamba-ssm",
    "selective_scan_cuda": "selective_scan_cuda (the compiled part of mamba-ssm)",
    "causal_conv1d": "causal-conv1d",
}


def selective_scan_implementation() -> Implementation:
    """``mamba_ssm.ops.selective_scan_interface.selective_scan_fn`` in float32."""
    return Implementation(
        NAME, _scan, _scan_backward, lambda device: obstacle(device, "mamba_ssm", "selective_scan_cuda"), _by_name
    )


def ssd_implementation() -> Implementation:
    """``mamba_ssm.ops.triton.ssd_combined.mamba_chunk_scan_combined``."""
    return Implementation(
        NAME, _ssd, _ssd_backward, lambda device: obstacle(device, "mamba_ssm"), _by_name, prepare=_contiguous
    )


def causal_conv1d_implementation() -> Implementation:
    """``causal_conv1d.causal_conv1d_fn``."""
    return Implementation(
        NAME, _conv, _conv_backward, lambda device: obstacle(device, "causal_conv1d"), _by_name, prepare=_contiguous
    )


def obstacle(device: torch.device, *packages: str) -> str | None:
    """Why these packages cannot run on ``device``, or None."""
    for package in packages:
        if not _installed(package):
            return f"{PACKAGES[package]} is not installed"
    return None if device.type == "cuda" else "it needs a CUDA device"


@cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _by_name(device: torch.device) -> bool:
    return False


def _contiguous(dtype: torch.dtype, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.contiguous() for t in tensors)


def _require(operation: str, *rules: tuple[bool, str]) -> None:
    for holds, limit in rules:
        if not holds:
            raise RuntimeError(f"{operation}: implementation {NAME!r} {limit}; choose another implementation")


def _half_or_single(*tensors: Tensor | None) -> tuple[bool, str]:
    wide = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return not wide, "takes float32, bfloat16 and float16 only, not float64"


def _scan(x, dt, A, B, C, D, z, dt_bias, state, starts, softplus) -> tuple[Tensor, Tensor]:
    _require_scan(x, A, state, starts)
    return _scan_outputs(x, dt, A, B, C, D, z, dt_bias, softplus=softplus)


def _scan_backward(dy, dstate, x, dt, A, B, C, D, z, dt_bias, state, starts, softplus) -> list[Tensor]:
    """The gradient of the initial state, which the package does not have, is NaN."""
    _require_scan(x, A, state, starts)
    _require("selective_scan", (not dstate.any(), "has no gradient through the final state"))
    inputs = (x, dt, A, B, C, D, z, dt_bias)
    gradients = recomputed_gradients(lambda *i: _scan_outputs(*i, softplus=softplus)[:1], inputs, (dy,))
    return [*gradients, torch.full_like(state, torch.nan)]


def _require_scan(x, A, state, starts) -> None:
    _require(
        "selective_scan",
        _half_or_single(x),
        (starts is None, "does not support packed sequences (seq_idx)"),
        (not state.any(), "does not support an initial state other than zero"),
        (A.shape[1] <= LARGEST_STATE, f"supports at most {LARGEST_STATE} states a channel, not {A.shape[1]}"),
    )


def _scan_outputs(x, dt, A, B, C, D, z, dt_bias, softplus) -> tuple[Tensor, Tensor]:
    """Its layout: channels (B, D, T), maps (B, G, N, T), time contiguous."""
    function = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    x, dt, z = (None if t is None else t.transpose(1, 2).contiguous() for t in (x, dt, z))
    maps = (t.permute(0, 2, 3, 1).contiguous() for t in (B, C))
    y, final = function(x, dt, A, *maps, D=D, z=z, delta_bias=dt_bias, delta_softplus=softplus, return_last_state=True)
    return y.transpose(1, 2).contiguous(), final.contiguous()


def _ssd(x, dt, A, B, C, state, starts, chunk_size) -> tuple[Tensor, Tensor]:
    _require("ssd", _half_or_single(x, dt, A, B, C, state))
    return _ssd_outputs(x, dt, A, B, C, state, starts, chunk_size=chunk_size)


def _ssd_backward(dy, dstate, *inputs) -> tuple[Tensor, ...]:
    *tensors, chunk_size = inputs
    _require("ssd", _half_or_single(*tensors))
    return tuple(recomputed_gradients(partial(_ssd_outputs, chunk_size=chunk_size), tensors, (dy, dstate)))


def _ssd_outputs(x, dt, A, B, C, state, starts, chunk_size) -> tuple[Tensor, Tensor]:
    """One dtype for x, B and C; a chunk is a power of two from 16 to 256; the initial state belongs to sequence 0."""
    function = importlib.import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    dtype = torch.promote_types(x.dtype, torch.promote_types(B.dtype, C.dtype))
    y, final = function(
        x.to(dtype),
        dt.float(),
        A.float(),
        B.to(dtype),
        C.to(dtype),
        min(256, max(16, 1 << (chunk_size - 1).bit_length())),
        initial_states=state,
        seq_idx=None if starts is None else starts.cumsum(1, dtype=torch.int32),
        return_final_states=True,
    )
    return y.to(x.dtype), final.to(state.dtype)


def _conv(x, weight, bias, state, starts, silu) -> tuple[Tensor, Tensor]:
    _require_conv(x, weight, starts)
    return _conv_outputs(x, weight, bias, state, silu)


def _conv_backward(dy, dstate, x, weight, bias, state, starts, silu) -> list[Tensor]:
    _require_conv(x, weight, starts)
    bias = weight.new_zeros(x.shape[2]) if bias is None else bias
    return recomputed_gradients(partial(_conv_outputs, silu=silu), (x, weight, bias, state), (dy, dstate))


def _require_conv(x, weight, starts) -> None:
    (_, length, dim), width = x.shape, weight.shape[1]
    _require(
        "causal_conv1d",
        _half_or_single(x, weight),
        (starts is None, "does not support packed sequences (seq_idx) together with a state"),
        (width in CONV_WIDTHS, f"supports widths {CONV_WIDTHS}, not {width}"),
        (dim % 8 == 0, f"supports multiples of 8 channels, not {dim}"),
        (length >= width - 1, f"needs at least W - 1 = {width - 1} time steps, not {length}"),
    )


def _conv_outputs(x, weight, bias, state, silu) -> tuple[Tensor, Tensor]:
    """Its layout: (B, D, T) with the channels contiguous, bias in the dtype of the weights."""
    function = importlib.import_module("causal_conv1d").causal_conv1d_fn
    y = function(
        x.transpose(1, 2),
        weight,
        None if bias is None else bias.to(weight.dtype),
        initial_states=state.transpose(1, 2),
        activation="silu" if silu else None,
    )
    history = torch.cat([state, x], dim=1)
    return y.transpose(1, 2).contiguous(), history[:, x.shape[1] :].contiguous()
