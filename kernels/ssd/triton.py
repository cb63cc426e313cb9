r"""State-space duality in Triton: chunks side by side as matrix products, a pass over their states between the two.

In a chunk, with total[i] the sum of dt A up to i, L[i, j] = exp(total[i] - total[j]) for j <= i, X = dt o x,
start = exp(total), end = exp(total[last] - total), S (P, N) the state before the chunk and R the gradient of the state
behind it:

    Y  = ((C B^T) o L) X + start o (C S^T)               S <- start[last] S + (end o X)^T B
    dX = ((B C^T) o L^T) dY + end o (B R^T)              R <- start[last] R + (start o dY)^T C
    dC = Z B + start o (dY S),  dB = Z^T C + end o (X R)  with Z = (dY X^T) o L, summed over the heads of a group

With W = Z o (C B^T), the log decay of step t has as gradient the sum of W over i >= t > j, of start o (C . dY S) from t
on, of end o (B . X R) before t, and start[last] <R, S>.

What is kept of a chunk is its state, recomputed in the backward. Sums and states are float32; products of bfloat16
inputs round what they multiply to bfloat16 where the result is rounded to it too, elsewhere they split it in three.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from zoo.kernels.ssd import triton_kernels as kernels
from zoo.kernels.triton_support import block_sizes

SMALLEST = 16  # rows or columns of a matrix product
FREE_CHUNK = 64  # from this chunk_size on, the chunk is the device's
PASS_BLOCK = 512  # states a program of the pass over chunks
PROGRAMS = 512  # for the gradients of B and C the heads of a group are split until there are as many
DEFAULTS = {
    "bf16": {"chunk": 128, "tile": 64, "block_p": 64, "block_n": 128, "warps": 4, "wide_warps": 8, "stages": 2},
    "tf32": {"chunk": 128, "tile": 64, "block_p": 64, "block_n": 64, "warps": 4, "wide_warps": 8, "stages": 2},
    "tf32x3": {"chunk": 64, "tile": 64, "block_p": 64, "block_n": 64, "warps": 8, "wide_warps": 8, "stages": 2},
    "ieee": {"chunk": 64, "tile": 32, "block_p": 32, "block_n": 32, "warps": 4, "wide_warps": 8, "stages": 1},
}
ROOMY = 160 * 1024  # bytes of shared memory a program may have where these fit; elsewhere those of SMALL replace them
SMALL = {"tile": 32, "block_n": 64, "warps": 4, "wide_warps": 4}


def forward(x, dt, A, B, C, state, starts, chunk_size) -> tuple[Tensor, Tensor]:
    """Same arguments as the reference; x, B, C of any floating dtype, dt and state of the dtype of the sums."""
    launch = _Launch(x, dt, A, B, C, state, starts, chunk_size)
    before, final = launch.states(x, B, state, rounded=True)
    return launch.outputs(x, C, B, before), final


def backward(dy, dstate, x, dt, A, B, C, state, starts, chunk_size) -> tuple[Tensor, ...]:
    """Gradients of x, dt, A, B, C and the initial state; every sum in a fixed order."""
    launch = _Launch(x, dt, A, B, C, state, starts, chunk_size, dy)
    before, _ = launch.states(x, B, state)
    behind, dinitial, products = launch.state_gradients(dy, C, dstate, before)
    dx = launch.outputs(dy, B, C, behind, MIRRORED=True)
    dC, from_start = launch.map_gradients(dy, x, C, B, before)
    dB, to_end = launch.map_gradients(x, dy, B, C, behind, MIRRORED=True)
    ddt, dA = launch.decay_gradients(*launch.crossings(x, dy, B, C), from_start, to_end, products)
    return dx, ddt, dA, dB, dC, dinitial


class _Launch:
    """The kernels on one set of inputs, with what they share: sizes, the sums of log decays, the sequence numbers."""

    def __init__(self, x, dt, A, B, C, state, starts, chunk_size, *more):
        (self.batch, self.length, self.heads, self.P), (self.groups, self.N) = x.shape, B.shape[2:]
        self.precision = _precision(state.dtype, x, B, C, *more)
        shape_class = "bf16" if self.precision == "rounded" else self.precision
        sizes = block_sizes("ssd", shape_class, x.device, _default_sizes(shape_class, x.device))
        wanted = sizes["chunk"] if chunk_size >= FREE_CHUNK else chunk_size
        self.chunk = _power(min(wanted, self.length))
        self.chunks = triton.cdiv(self.length, self.chunk)
        self.tile = min(sizes["tile"], self.chunk)
        self.tiles = self.chunk // self.tile
        self.block_p, self.block_n = min(sizes["block_p"], _power(self.P)), min(sizes["block_n"], _power(self.N))
        self.tiles_p, self.tiles_n = triton.cdiv(self.P, self.block_p), triton.cdiv(self.N, self.block_n)
        self.padded = self.chunks * self.chunk
        self.options = {"num_warps": sizes["warps"], "num_stages": sizes["stages"]}
        self.wide = self.options | {"num_warps": sizes["wide_warps"]}
        self.A = A.to(state.dtype).contiguous()
        self.decays = state.new_empty(self.batch, self.heads, 3, self.padded)
        self.has_starts, self.index = starts is not None, self.decays
        if starts is not None:
            self.index = F.pad(starts, (0, self.padded - self.length)).cumsum(1, dtype=torch.int32)
        block = min(8, triton.next_power_of_2(self.heads))
        _run(
            kernels.running_sums, self.batch * self.chunks * triton.cdiv(self.heads, block),
            dt, self.A, self.decays, *dt.stride(),
            self.length, self.padded, self.heads, self.chunks, self.chunk, block,
        )  # fmt: skip

    def states(self, x, B, state, rounded=False) -> tuple[Tensor, Tensor]:
        """State before each chunk (B, chunks, H, P, N), where allowed rounded as products take it; the final state."""
        added = self._added(x, B, mirrored=False)
        rounded = rounded and self.precision in ("bf16", "rounded")
        before = torch.empty_like(added, dtype=torch.bfloat16) if rounded else added
        return before, self._pass(added, state, before, added, added, mirrored=False)

    def state_gradients(self, dy, C, dstate, before) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient of the state behind each chunk, of the initial state, and the parts of start[last] <R, S>."""
        added = self._added(dy, C, mirrored=True)
        products = added.new_empty(self.batch, self.heads, self.chunks, triton.cdiv(self.P * self.N, PASS_BLOCK))
        return added, self._pass(added, dstate, added, before, products, mirrored=True), products

    def outputs(self, values, row_maps, column_maps, states, MIRRORED=False) -> Tensor:
        result = torch.empty(values.shape, dtype=values.dtype, device=values.device)
        _run(
            kernels.outputs, self.tiles_p * self.heads * self.chunks * self.tiles * self.batch,
            values, row_maps, column_maps, self.decays, self.index, states, result,
            *values.stride(), *row_maps.stride(), *column_maps.stride(), *self._counts(),
            MIRRORED=MIRRORED, **self._constants(), **self.options,
        )  # fmt: skip
        return result

    def map_gradients(self, row_values, column_values, row_maps, column_maps, states, MIRRORED=False):
        """Gradient of ``row_maps``, and its part of the gradient of the log decays through the states."""
        programs = self.tiles_n * self.tiles * self.groups * self.chunks * self.batch
        per_group = self.heads // self.groups
        share = triton.cdiv(per_group, min(per_group, triton.cdiv(PROGRAMS, programs)))
        splits = triton.cdiv(per_group, share)
        result, across = self.decays.new_empty(splits, *row_maps.shape), self._of_heads(self.tiles_n)
        inputs = row_values, column_values, row_maps, column_maps
        length, padded, *counts = self._counts()
        _run(
            kernels.map_gradients, programs * splits,
            *inputs, self.decays, self.index, states, result, across,
            *(size for t in inputs for size in t.stride()), length, padded, self.batch, *counts, splits,
            MIRRORED=MIRRORED, **self._constants(), **self.wide,
        )  # fmt: skip
        return result.sum(0), across

    def crossings(self, x, dy, B, C) -> tuple[Tensor, Tensor]:
        """The parts of the gradients of dt and of the log decays within chunks."""
        direct, crossing, inputs = self._of_heads(self.tiles), self._of_heads(self.tiles), (x, dy, B, C)
        length, padded, *counts = self._counts()
        _run(
            kernels.crossings, self.heads * self.chunks * self.tiles * self.batch,
            *inputs, self.decays, self.index, direct, crossing,
            *(size for t in inputs for size in t.stride()), length, padded, self.batch, *counts,
            **self._constants(), **self.wide,
        )  # fmt: skip
        return direct, crossing

    def decay_gradients(self, direct, crossing, from_start, to_end, products) -> tuple[Tensor, Tensor]:
        """Gradients of dt (B, T, H) and A."""
        ddt = self.decays.new_empty(self.batch, self.heads, self.padded)
        dA = self.decays.new_empty(self.batch, self.heads, self.chunks)
        _run(
            kernels.decay_gradients, self.batch * self.heads * self.chunks,
            self.decays, self.A, direct, crossing, from_start, to_end, products, ddt, dA,
            self.padded, self.batch, self.heads, self.chunks, self.tiles_n, products.shape[-1],
            CHUNK=self.chunk, TILE=self.tile, num_warps=1,
        )  # fmt: skip
        return ddt[..., : self.length].mT, dA.sum((0, 2))

    def _of_heads(self, planes: int) -> Tensor:
        return self.decays.new_empty(planes, self.batch, self.heads, self.padded)

    def _added(self, values, maps, mirrored) -> Tensor:
        added = self.decays.new_empty(self.batch, self.chunks, self.heads, self.P, self.N)
        _run(
            kernels.chunk_states, self.tiles_p * self.tiles_n * self.heads * self.chunks * self.batch,
            values, maps, self.decays, self.index, added, *values.stride(), *maps.stride(), *self._counts(),
            MIRRORED=mirrored, **self._constants(), **self.options,
        )  # fmt: skip
        return added

    def _pass(self, added, first, before, forward_states, products, mirrored) -> Tensor:
        size = self.P * self.N
        final = torch.empty(first.shape, dtype=first.dtype, device=first.device)
        _run(
            kernels.pass_states, triton.cdiv(size, PASS_BLOCK) * self.heads * self.batch,
            added, first.contiguous(), self.decays, self.index, before, final, forward_states, products,
            self.padded, self.heads, self.chunks,
            MIRRORED=mirrored, HAS_STARTS=self.has_starts, SIZE=size, CHUNK=self.chunk, BLOCK=PASS_BLOCK,
        )  # fmt: skip
        return final

    def _counts(self) -> tuple[int, ...]:
        return self.length, self.padded, self.heads, self.heads // self.groups, self.chunks

    def _constants(self) -> dict:
        return {
            "HAS_STARTS": self.has_starts, "P": self.P, "N": self.N, "CHUNK": self.chunk, "TILE": self.tile,
            "BLOCK_P": self.block_p, "BLOCK_N": self.block_n, "PRECISION": self.precision,
        }  # fmt: skip


def _run(kernel: Any, programs: int, *arguments, **constants) -> None:
    kernel[(programs,)](*arguments, **constants, enable_fp_fusion=True)


def _precision(dtype: torch.dtype, *inputs: Tensor) -> str:
    """How products of these inputs are formed (``kernels.dot``): half-precision ones are exact, in tf32 float16 too."""
    if dtype == torch.float64:
        return "ieee"
    kinds = {t.dtype for t in inputs}
    if kinds == {torch.bfloat16}:
        return "bf16" if inputs[0].is_cuda else "rounded"
    return "tf32" if kinds == {torch.float16} else "tf32x3"


def _default_sizes(shape_class: str, device: torch.device) -> dict[str, int]:
    roomy = device.type != "cuda" or torch.cuda.get_device_properties(device).shared_memory_per_block_optin >= ROOMY
    return DEFAULTS[shape_class] if roomy or shape_class == "ieee" else DEFAULTS[shape_class] | SMALL


def _power(size: int) -> int:
    return max(SMALLEST, triton.next_power_of_2(size))
