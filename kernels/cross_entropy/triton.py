"""Cross-entropy of a linear layer in Triton: logits live in registers, one tile of rows and vocabulary at a time.

``_statistics`` runs over the vocabulary with the online logsumexp, in a few splits side by side. For the gradients
``_dlogits`` computes the tiles again and writes their gradient for chunk_size rows and a stretch of the vocabulary,
from which ``_product`` adds to the gradients of hidden and weight, in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.common.elementwise import tanh
from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.triton_support import block_sizes

PROGRAMS = 512  # that _statistics aims at, by splitting the vocabulary
SCRATCH = 1 << 25  # gradients of logits that exist at a time
DEFAULTS = {
    "half": {"BM": 64, "BN": 128, "BK": 64, "num_warps": 4, "num_stages": 3},
    "float32": {"BM": 64, "BN": 64, "BK": 32, "num_warps": 4, "num_stages": 2},
    "float64": {"BM": 32, "BN": 32, "BK": 16, "num_warps": 4, "num_stages": 1},
}


def forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    ignore_index: int,
    z_loss: float,
    softcap: float | None,
    label_smoothing: float,
    _: int,
) -> Tensor:
    """Same arguments and result as the reference; hidden, weight and bias of any floating dtypes and strides."""
    return _loss(_Launch(hidden, weight, bias, softcap), labels, ignore_index, z_loss, label_smoothing)[0]


def backward(
    hidden, weight, bias, labels, ignore_index, z_loss, softcap, label_smoothing, chunk_size
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The loss, and its gradients of hidden, weight and bias."""
    launch = _Launch(hidden, weight, bias, softcap)
    loss, normaliser, counted = _loss(launch, labels, ignore_index, z_loss, label_smoothing)
    counted = counted.to(launch.dtype)
    softmax_scale = (1 + 2 * z_loss * normaliser) * counted
    dhidden, dweight = (t.new_zeros(t.shape, dtype=launch.dtype) for t in (hidden, weight))
    dbias = None if bias is None else bias.new_zeros(bias.shape, dtype=launch.dtype)
    rows = max(1, min(chunk_size, len(hidden)))
    columns = max(launch.sizes["BN"], min(len(weight), SCRATCH // rows))
    scratch = hidden.new_empty(rows, columns, dtype=launch.operands)
    for first_row in range(0, len(hidden), rows):
        row = slice(first_row, first_row + rows)
        for first in range(0, len(weight), columns):
            column = slice(first, first + columns)
            dlogits = scratch[: len(hidden[row]), : len(weight[column])]
            launch.dlogits(
                row, column, labels[row], normaliser[row], softmax_scale[row], counted[row], label_smoothing, dlogits
            )
            launch.product(dlogits, weight[column], dhidden[row])
            launch.product(dlogits.mT, hidden[row], dweight[column])
            if dbias is not None:
                dbias[column] += dlogits.sum(0, dtype=launch.dtype)
    return loss, dhidden, dweight, dbias


def _loss(launch: _Launch, labels, ignore_index, z_loss, label_smoothing) -> tuple[Tensor, Tensor, Tensor]:
    """Summed loss; logsumexp and whether it is counted of each row."""
    largest, total, chosen, summed = launch.statistics(labels)
    vocabulary, counted = len(launch.weight), labels != ignore_index
    overall = largest.amax(0)
    normaliser = overall + (total * (largest - overall).exp()).sum(0).log()
    chosen = chosen.sum(0).masked_fill((labels < 0) | (labels >= vocabulary), torch.nan)
    target = (1 - label_smoothing) * chosen
    if label_smoothing:
        target = target + label_smoothing / vocabulary * summed.sum(0)
    losses = normaliser - target + z_loss * normaliser.square()
    return losses.where(counted, 0).sum(), normaliser, counted


class _Launch:
    """The kernels for one layer: what they are given, the dtypes they compute in and the sizes of their tiles."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None):
        self.hidden, self.weight, self.bias = hidden, weight, bias
        self.dtype, self.operands = compute_dtype(hidden, weight, bias), _operands(hidden, weight, bias)
        size = "half" if self.operands.itemsize == 2 else "float32" if self.dtype == torch.float32 else "float64"
        self.sizes = block_sizes("linear_cross_entropy", size, hidden.device, DEFAULTS[size])
        exact = self.dtype == torch.float64 or self.operands.itemsize == 2 or torch.version.hip is not None
        self.options: dict[str, Any] = {"DOT": _TYPES[self.operands], "PRECISION": "ieee" if exact else "tf32x3"}
        self.tile: dict[str, Any] = self.options | {
            "REAL": _TYPES[self.dtype], "HAS_BIAS": bias is not None, "CAP": softcap or 0.0
        }  # fmt: skip

    def statistics(self, labels: Tensor) -> list[Tensor]:
        """Of each split of the vocabulary and each row: largest logit, sum of exponentials, chosen logit, sum."""
        rows, vocabulary = len(self.hidden), len(self.weight)
        blocks, tiles = triton.cdiv(rows, self.sizes["BM"]), triton.cdiv(vocabulary, self.sizes["BN"])
        tiles_a_split = triton.cdiv(tiles, min(tiles, triton.cdiv(PROGRAMS, max(blocks, 1))))
        splits = triton.cdiv(tiles, tiles_a_split)
        found = [self.hidden.new_empty(splits, rows, dtype=self.dtype) for _ in range(4)]
        if rows:
            self._run(
                _statistics, (blocks, splits), *self._layer(slice(None), slice(None)), labels.contiguous(), *found,
                tiles_a_split, **self.tile,
            )  # fmt: skip
        return found

    def dlogits(self, row, column, labels, normaliser, softmax_scale, counted, label_smoothing, out) -> None:
        """Gradients of the logits of some rows and columns."""
        grid = triton.cdiv(out.shape[0], self.sizes["BM"]), triton.cdiv(out.shape[1], self.sizes["BN"])
        self._run(
            _dlogits, grid, *self._layer(row, column), labels.contiguous(), normaliser, softmax_scale, counted,
            out, out.stride(0), column.start, SMOOTHING=label_smoothing, VOCABULARY=len(self.weight), **self.tile,
        )  # fmt: skip

    def product(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """Add a @ b to ``out``, contiguous."""
        grid = triton.cdiv(out.shape[0], self.sizes["BM"]), triton.cdiv(out.shape[1], self.sizes["BN"])
        self._run(_product, grid, a, b, out, *out.shape, a.shape[1], *a.stride(), *b.stride(), **self.options)

    def _layer(self, row: slice, column: slice) -> tuple:
        hidden, weight = self.hidden[row], self.weight[column]
        bias = weight if self.bias is None else self.bias.contiguous()[column]
        return hidden, weight, bias, len(hidden), *weight.shape, *hidden.stride(), *weight.stride()

    def _run(self, kernel: Any, grid: tuple[int, ...], *arguments, **options) -> None:
        with torch.cuda.device_of(self.hidden):
            kernel[grid](*arguments, **options, **self.sizes)


_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32, torch.float64: tl.float64}


def _operands(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype:
    """Of the products' factors: a half precision where both have it, but not in the interpreter, which cannot."""
    if hidden.is_cuda and hidden.dtype == weight.dtype and hidden.dtype.itemsize == 2:
        return hidden.dtype if bias is None or bias.dtype != torch.float64 else torch.float64
    return compute_dtype(hidden, weight, bias)


@triton.jit
def _logits(
    hidden, weight, bias, row, column, M, V, D, h_row, h_column, w_row, w_column,
    REAL: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, HAS_BIAS: tl.constexpr, CAP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Capped logits (BM, BN) of rows (BM, 1) and columns (1, BN)."""
    logits = tl.zeros([BM, BN], dtype=REAL)
    h_row_start = hidden + row.to(tl.int64) * h_row
    w_row_start = weight + column.to(tl.int64) * w_row
    for k in range(0, D, BK):
        d = k + tl.arange(0, BK)
        h = tl.load(h_row_start + d[None, :] * h_column, mask=(row < M) & (d[None, :] < D), other=0.0)
        w = tl.load(w_row_start + d[:, None] * w_column, mask=(column < V) & (d[:, None] < D), other=0.0)
        logits = tl.dot(h.to(DOT), w.to(DOT), logits, input_precision=PRECISION, out_dtype=REAL)
    if HAS_BIAS:
        logits += tl.load(bias + column, mask=column < V, other=0.0).to(REAL)
    if CAP > 0:
        logits = tanh(logits / CAP) * CAP
    return logits


@triton.jit
def _statistics(
    hidden, weight, bias, M, V, D, h_row, h_column, w_row, w_column, labels, largest, total, chosen, summed,
    tiles_a_split,
    REAL: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, HAS_BIAS: tl.constexpr, CAP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """largest, total, chosen, summed (splits, M) of one split."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    label = tl.load(labels + row, mask=row < M, other=-1)
    top = tl.full([BM, 1], float("-inf"), dtype=REAL)
    exponentials = tl.zeros([BM, 1], dtype=REAL)
    own = tl.zeros([BM, 1], dtype=REAL)
    everything = tl.zeros([BM, 1], dtype=REAL)
    first = tl.program_id(1) * tiles_a_split
    for tile in range(first, tl.minimum(first + tiles_a_split, tl.cdiv(V, BN))):
        column = tile * BN + tl.arange(0, BN)[None, :]
        logits = _logits(
            hidden, weight, bias, row, column, M, V, D, h_row, h_column, w_row, w_column,
            REAL, DOT, PRECISION, HAS_BIAS, CAP, BM, BN, BK,
        )  # fmt: skip
        own += tl.sum(tl.where(column == label, logits, 0.0), axis=1, keep_dims=True)
        everything += tl.sum(tl.where(column < V, logits, 0.0), axis=1, keep_dims=True)
        logits = tl.where(column < V, logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, axis=1, keep_dims=True))
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        exponentials *= tl.exp(top - shift)
        exponentials += tl.sum(tl.exp(logits - shift), axis=1, keep_dims=True)
        top = new_top
    place = tl.program_id(1).to(tl.int64) * M + row
    tl.store(largest + place, top, mask=row < M)
    tl.store(total + place, exponentials, mask=row < M)
    tl.store(chosen + place, own, mask=row < M)
    tl.store(summed + place, everything, mask=row < M)


@triton.jit
def _dlogits(
    hidden, weight, bias, M, V, D, h_row, h_column, w_row, w_column, labels, normaliser, softmax_scale, counted,
    dlogits, dlogits_row, first_column,
    SMOOTHING: tl.constexpr, VOCABULARY: tl.constexpr,
    REAL: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, HAS_BIAS: tl.constexpr, CAP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dlogits (M, V) of M rows and V columns, of which the first is column first_column of the VOCABULARY."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    column = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    logits = _logits(
        hidden, weight, bias, row, column, M, V, D, h_row, h_column, w_row, w_column,
        REAL, DOT, PRECISION, HAS_BIAS, CAP, BM, BN, BK,
    )  # fmt: skip
    inside = (row < M) & (column < V)
    label = tl.load(labels + row, mask=row < M, other=-1)
    weighing = tl.load(counted + row, mask=row < M, other=0.0)
    difference = tl.where(inside, logits - tl.load(normaliser + row, mask=row < M, other=0.0), 0.0)
    gradient = tl.exp(difference) * tl.load(softmax_scale + row, mask=row < M, other=0.0)
    gradient -= tl.where(column + first_column == label, (1 - SMOOTHING) * weighing, 0.0)
    gradient -= SMOOTHING / VOCABULARY * weighing
    if CAP > 0:
        gradient *= 1 - (logits / CAP) * (logits / CAP)
    place = dlogits + row.to(tl.int64) * dlogits_row + column
    tl.store(place, gradient.to(dlogits.dtype.element_ty), mask=inside)


@triton.jit
def _product(
    a, b, out, M, N, K, a_row, a_column, b_row, b_column,
    DOT: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out (M, N) += a (M, K) @ b (K, N)."""
    row = (tl.program_id(0) * BM + tl.arange(0, BM)[:, None]).to(tl.int64)
    column = (tl.program_id(1) * BN + tl.arange(0, BN)[None, :]).to(tl.int64)
    inside = (row < M) & (column < N)
    total = tl.load(out + row * N + column, mask=inside, other=0.0)
    for start in range(0, K, BK):
        k = (start + tl.arange(0, BK)).to(tl.int64)
        left = tl.load(a + row * a_row + k[None, :] * a_column, mask=(row < M) & (k[None, :] < K), other=0.0)
        right = tl.load(b + k[:, None] * b_row + column * b_column, mask=(k[:, None] < K) & (column < N), other=0.0)
        total = tl.dot(left.to(DOT), right.to(DOT), total, input_precision=PRECISION, out_dtype=total.dtype)
    tl.store(out + row * N + column, total, mask=inside)
