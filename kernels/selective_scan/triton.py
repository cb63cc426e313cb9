"""Selective scan in Triton: chunks of steps side by side, each from the state that the chunks before it leave.

The steps of a chunk are one elementwise map of the state, h -> P h + S. ``summaries`` finds P and S of every chunk,
``carry`` the state before each, ``outputs`` then runs all chunks at once. The state's gradient goes backwards through
the same P, with R in place of S; ``gradients`` recomputes the states inside a chunk from its boundary, four at a time.
A program holds the states of a block of channels, (STATE, CHANNELS), in registers.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from zoo.kernels.selective_scan import triton_kernels as kernels
from zoo.kernels.triton_support import block_sizes

CARRY_BLOCK = 128  # states a program of carry
LARGEST_WARPS = 8
FORWARD = {"chunk": 64, "channels": 32, "elements_a_warp": 256}  # steps and channels a program; of its state tile
BACKWARD = {"chunk": 16, "channels": 32, "elements_a_warp": 256}


def forward(x, dt, A, B, C, D, z, dt_bias, state, starts, softplus) -> tuple[Tensor, Tensor]:
    """Same arguments as the reference, of any floating dtype and strides; computed in the dtype of ``state``."""
    launch = _Launch("forward", FORWARD, x, dt, A, B, C, D, z, dt_bias, state, starts, softplus)
    output = x.new_empty(x.shape)
    if launch.chunks == 1:
        before, final = state.mT[:, None].contiguous(), state.new_empty(state.shape)
    else:
        P, S = (launch.new_states() for _ in range(2))
        launch(kernels.summaries, x, 0, 0, 0, P, S, S, BACKWARD=False)
        before, final = _carried(P, S, state, reverse=False)
    launch(kernels.outputs, before, output, final)
    return output, final


def backward(dy, dstate, x, dt, A, B, C, D, z, dt_bias, state, starts, softplus) -> list[Tensor]:
    """Gradients of the floating tensors that are there, in their order; every sum in a fixed order."""
    launch = _Launch("backward", BACKWARD, x, dt, A, B, C, D, z, dt_bias, state, starts, softplus)
    P, S, R = (launch.new_states() for _ in range(3))
    launch(kernels.summaries, dy, *dy.stride(), P, S, R, BACKWARD=True)
    before, _ = _carried(P, S, state, reverse=False)
    after, dinitial = _carried(P, R, dstate, reverse=True)
    del S, R
    dx, ddt, dz = (None if t is None else t.new_empty(t.shape) for t in (x, dt, z))
    dA, (dB, dC) = P, (state.new_empty(launch.blocks, *B.shape) for _ in range(2))
    dD, dbias = (None if t is None else state.new_empty(x.shape[0], launch.chunks, x.shape[2]) for t in (D, dt_bias))
    launch(kernels.gradients, dy, *dy.stride(), before, after, dx, ddt, dA, dB, dC, dD, dz, dbias)
    dA, dB, dC = dA.sum((0, 1)).mT, dB.sum(0), dC.sum(0)
    dD, dbias = (None if t is None else t.sum((0, 1)) for t in (dD, dbias))
    return [t for t in (dx, ddt, dA, dB, dC, dD, dz, dbias, dinitial) if t is not None]


class _Launch:
    """A kernel over (group, block of its channels) x chunks x batch, with the arguments that all of them share."""

    def __init__(self, shape_class, default, x, dt, A, B, C, D, z, dt_bias, state, starts, softplus):
        batch, length, dim = x.shape
        groups, size = B.shape[2:]
        sizes = block_sizes("selective_scan", shape_class, x.device, default)
        padded = triton.next_power_of_2(size)
        fits = max(1, LARGEST_WARPS * sizes["elements_a_warp"] // padded)
        channels = min(sizes["channels"], fits, triton.next_power_of_2(dim // groups))
        self.chunks, self.blocks = triton.cdiv(length, sizes["chunk"]), triton.cdiv(dim // groups, channels)
        self.grid = (self.blocks * groups * self.chunks * batch,)
        self.new_states = lambda: state.new_empty(batch, self.chunks, size, dim)
        self.arguments = (
            x, dt, A.mT.contiguous(), B, C, *(None if t is None else t.contiguous() for t in (D, dt_bias)), z,
            A if starts is None else starts.contiguous().view(torch.uint8),
            *x.stride(), *dt.stride(), *B.stride(), *C.stride(), *((0, 0, 0) if z is None else z.stride()),
            length, dim, groups, self.blocks, self.chunks,
        )  # fmt: skip
        self.options = {
            "HAS_STARTS": starts is not None, "SKIP": D is not None, "GATE": z is not None,
            "BIAS": dt_bias is not None, "SOFTPLUS": softplus,
            "CHUNK": sizes["chunk"], "N": size, "STATE": padded, "CHANNELS": channels,
            "num_warps": max(1, min(LARGEST_WARPS, padded * channels // sizes["elements_a_warp"])),
            "enable_fp_fusion": True,
        }  # fmt: skip

    def __call__(self, kernel, *arguments, **options) -> None:
        kernel[self.grid](*self.arguments, *arguments, **self.options, **options)


def _carried(P: Tensor, S: Tensor, first: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """The state that enters each chunk (B, chunks, N, D), and the one (B, D, N) that leaves the last."""
    batch, chunks, size, dim = P.shape
    before, last = torch.empty_like(S), first.new_empty(first.shape)
    kernel: Any = kernels.carry[(batch * triton.cdiv(size * dim, CARRY_BLOCK),)]
    kernel(P, S, first, before, last, *first.stride(), chunks, dim, size, reverse, CARRY_BLOCK, enable_fp_fusion=True)
    return before, last
