"""The record of a compressed matrix: what methods make, layers hold and kernels read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from zoo.kernels.lowbit_matmul import dequantise, lowbit_matmul, pack, row_bytes, unpack
from zoo.layers.quant.format import SCALES, Format


class Record(nn.Module):
    """Matrices (..., N, C) as packed codes, scales and zeros; it stands where a parameter stood.

    Its tensors are frozen parameters: they are in the state dict under the name of the weight, two layers may share one
    record, and casting a model leaves them as they are. What is learnt beside them, adapters, norms and biases, gets
    gradients through the record.

    Args:
        shape: (..., N, C); a row has C codes.
        format: how they are kept.
    """

    zero: Tensor | None

    def __init__(self, shape: Sequence[int], format: Format):
        super().__init__()
        self.shape, self.format = torch.Size(shape), format
        *rows, columns = shape
        groups = format.groups(columns)
        self.codes = _frozen(torch.empty(*rows, row_bytes(columns, format.bits), dtype=torch.uint8))
        self.scale = _frozen(torch.empty(*rows, groups, dtype=SCALES[format.scale_dtype]))
        self.zero = None if format.symmetric else _frozen(torch.empty(*rows, groups, dtype=torch.uint8))

    @classmethod
    def of(cls, q: Tensor, scale: Tensor, zero: Tensor | None, format: Format) -> Record:
        """Of codes q (..., N, C) in [0, 2^bits), scales (..., N, G), and zeros (..., N, G), None for symmetric ones."""
        with torch.device("meta"):
            record = cls(q.shape, format)
        record.codes = _frozen(pack(q, format.bits))
        record.scale = _frozen(scale.to(record.scale.dtype))
        record.zero = None if zero is None else _frozen(zero.to(torch.uint8))
        return record

    def unpacked(self) -> Tensor:
        """The codes q (..., N, C), uint8."""
        return unpack(self.codes, self.format.bits, self.shape[-1])

    def dequantise(self, rows: Tensor | int | None = None) -> Tensor:
        """The numbers (..., N, C) in float32: of all rows, or those of an index into the first axis."""
        tensors = [t if t is None or rows is None else t[rows] for t in (self.codes, self.scale, self.zero)]
        return dequantise(*tensors, bits=self.format.bits, columns=self.shape[-1])  # type: ignore[arg-type]

    def matmul(self, x: Tensor, bias: Tensor | None = None, index: int | None = None) -> Tensor:
        """x (..., C) times the transpose of the matrix, of matrix ``index`` where there are several -> (..., N)."""
        codes, scale, zero = (
            t if t is None or index is None else t[index] for t in (self.codes, self.scale, self.zero)
        )
        return lowbit_matmul(x, codes, scale, zero, bits=self.format.bits, bias=bias)  # type: ignore[arg-type]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(parameter.nbytes for parameter in self.parameters())

    def extra_repr(self) -> str:
        """Shape and format."""
        return f"{tuple(self.shape)}, {self.format}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return found if found.dtype == tensor.dtype else tensor.to(found.device)

        return super()._apply(moved, recurse)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
