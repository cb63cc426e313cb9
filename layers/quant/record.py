"""The record of a compressed matrix: what methods make, layers hold and kernels read."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.kernels.lowbit_matmul import pack, unpack
from zoo.layers.precision import Packed
from zoo.layers.quant.format import OUTLIERS, Format
from zoo.layers.quant.inputs import INPUTS, Inputs
from zoo.layers.quant.layouts import LAYOUTS
from zoo.layers.quant.outliers import add_outliers, cut, outlier_product
from zoo.layers.quant.times import Clock

BLOCKED = ("scale", "zero")


class Record(Packed):
    """Matrices (..., N, C) as codes, scales and what else their format has; it stands where a parameter stood.

    Its tensors are frozen parameters: they are in the state dict under the name of the weight, two layers may share one
    record, and casting a model leaves them as they are. What is learnt beside them, adapters, norms and biases, gets
    gradients through the record.

    Args:
        shape: (..., N, C); a row has C codes.
        format: how they are kept.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(self, shape: Sequence[int], format: Format):
        super().__init__()
        self.shape, self.format = torch.Size(shape), format
        self._width: int | None = None
        self.clock: Clock | None = None
        for name, kept in format.tensors(shape).items():
            tensor = None if kept is None else torch.empty(kept[0], dtype=kept[1])
            self.register_parameter(name, None if tensor is None else _frozen(tensor))

    @classmethod
    def holding(cls, shape: Sequence[int], format: Format, tensors: Mapping[str, Tensor | None]) -> Record:
        """Of tensors by name, scales and zeros of each block, in any dtype.

        Raises:
            ValueError: for tensors that are not of this format.
        """
        with torch.device("meta"):
            record = cls(shape, format)
        for name, wanted in list(record._parameters.items()):
            found = tensors.get(name)
            if (found is None) != (wanted is None) or (wanted is not None and found.shape != wanted.shape):  # type: ignore[union-attr]
                got = None if found is None else tuple(found.shape)
                size = None if wanted is None else tuple(wanted.shape)
                raise ValueError(f"{name} must be {size} in {format}, got {got}")
            if found is not None and wanted is not None:
                record.register_parameter(name, _frozen(found.detach().to(wanted.dtype).contiguous()))
        return record

    @classmethod
    def nearest(cls, matrix: Tensor, format: Format) -> Record:
        """The nearest codes of float32 matrices (..., N, C); the largest numbers are the outliers, if there are any."""
        outliers = {}
        if format.outliers:
            matrix, outliers = cut(matrix, format.outliers)
        found = LAYOUTS[format.layout].encode(matrix, format) | outliers
        return cls.holding(matrix.shape, format, _of_blocks(found, format))

    @classmethod
    def of(
        cls, q: Tensor, scale: Tensor, zero: Tensor | None, format: Format, outliers: Tensor | None = None
    ) -> Record:
        """Of integer codes.

        Args:
            q: (..., N, C) in [0, 2^bits).
            scale: (..., N, G); the first row's of a block counts where rows share one.
            zero: (..., N, G); None for symmetric ones.
            format: of layout "int". Its count of outliers is set by those given.
            outliers: matrices (..., N, C) of what is kept as it is; 0 elsewhere. Where it is not 0, q must be the zero.

        Raises:
            ValueError: for another layout, or zeros where the format has none.
        """
        if format.layout != "int":
            raise ValueError(f"codes with scales and zeros are of layout 'int', got {format.layout!r}")
        found: dict[str, Tensor | None] = {"codes": pack(q, format.bits), "scale": scale, "zero": zero}
        if outliers is not None:
            count = int((outliers != 0).flatten(-2).sum(-1).max())
            format = dataclasses.replace(format, outliers=count)
            found |= cut(outliers, count)[1] if count else {}
        return cls.holding(q.shape, format, _of_blocks(found, format))

    @property
    def width(self) -> int:
        """Bits of a weight that are read: all, or in layout "nested" as many as were set. No file keeps it."""
        return self._width or self.format.bits

    @width.setter
    def width(self, bits: int | None) -> None:
        form = self.format
        if bits is not None and bits != form.bits:
            self._layout.narrowed({}, form, bits)  # raises for a layout of one width
            if not form.base_bits <= bits <= form.bits:
                raise ValueError(f"width must lie in [{form.base_bits}, {form.bits}], got {bits}")
        self._width = bits

    def at(self, width: int) -> Record:
        """The same matrices, of the same tensors, read in so many bits; this record stays as it is.

        Raises:
            ValueError: as ``width`` has it.
        """
        found = copy.copy(self)
        found.width = width
        return found

    @property
    def has_widths(self) -> bool:
        """Whether it may be read in fewer bits than all."""
        return self.format.layout == "nested"

    def nbytes_at(self, bits: int) -> int:
        """Bytes of the tensors that are read at that width."""
        held: Any = {name: t for name, t in self._parameters.items() if t is not None}
        kept = held if bits == self.format.bits else self._layout.narrowed(held, self.format, bits)
        return sum(tensor.nbytes for tensor in kept.values())

    def unpacked(self) -> Tensor:
        """The codes q (..., N, C), uint8."""
        return unpack(self.codes, self.format.bits, self.shape[-1])

    def dequantise(self, rows: Tensor | int | None = None) -> Tensor:
        """The numbers (..., N, C) in float32: of all rows, or those of an index into the first axis; of the first range
        of times where there are several."""
        w = self._layout.dequantise(self._read(rows), self.format, self.shape[-1])
        w = self.format.inputs.columns_back(w, self._balance())
        return add_outliers(w, self.shape, *self._outliers, rows) if self.format.outliers else w

    def matmul(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        index: int | None = None,
        changed: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """x (..., C) times the transpose of the matrix, of matrix ``index`` where there are several -> (..., N).

        Args:
            changed: tensors in place of some of the record's, which may have gradients where the layout's product has.
        """
        if self.format.inputs.times:
            if self.clock is None:
                raise ValueError("a record with times reads those that its model is called with: install it in one")
            return self.clock.by_range(x, self.format.inputs.times, partial(self._in_range, bias=bias, index=index))
        return self._product(x, bias, index, changed)

    def rounded(self, x: Tensor, axis: int = -1) -> Tensor:
        """x with channels along an axis as it multiplies the matrix, of scales that are stored; otherwise x."""
        form = self.format
        if not form.inputs.parts:
            return x
        return form.inputs.rounded(x, form.activation_bits or 8, self._parameters, axis)

    def _in_range(self, x: Tensor, span: int, *, bias: Tensor | None, index: int | None) -> Tensor:
        return self._product(x, bias, index, None, span)

    def _product(
        self, x: Tensor, bias: Tensor | None, index: int | None, changed: Mapping[str, Tensor] | None, span: int = 0
    ) -> Tensor:
        form, given = self.format, x
        x = form.inputs.moved(x, self._balance(span))
        if form.inputs.rounds:
            x = form.inputs.rounded(x, form.activation_bits or 8, self._parameters)
            form = _of_floats(form)
        y = self._layout.matmul(x, {**self._read(index, span), **(changed or {})}, form, bias)
        if not form.outliers:
            return y
        place, value = (t if index is None else t[index] for t in self._outliers)
        return y + outlier_product(given, place, value, self.shape[-2]).to(y.dtype)

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers that it stands for, see ``dequantise``."""
        return torch.float32

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """torch's fused forms that read weights themselves, as of ``nn.TransformerEncoder``, leave alone what has rules
        of its own and call the layers one by one; other functions refuse a record in the place of a tensor."""
        return NotImplemented

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(parameter.nbytes for parameter in self.parameters())

    def extra_repr(self) -> str:
        """Shape and format."""
        return f"{tuple(self.shape)}, {self.format}"

    @property
    def _layout(self):
        return LAYOUTS[self.format.layout]

    @property
    def _outliers(self) -> tuple[Any, Any]:
        """Places and values, None of a format without: ``torch.jit.trace`` reads every property."""
        place, value = (self._parameters.get(name) for name in OUTLIERS)
        return place, value

    def _balance(self, span: int = 0) -> Tensor | None:
        """Factors (C,) of the channels in a range of times."""
        found = self._parameters.get("balance")
        return None if found is None else found[span]

    def _read(self, index: Tensor | int | None, span: int = 0) -> Mapping[str, Tensor | None]:
        """The layout's tensors of a range of times, of all rows or of an index into the first axis, with scales and
        zeros for each row."""
        given = {name: t for name, t in self._parameters.items() if name not in (*OUTLIERS, *INPUTS)}
        if self.format.inputs.times:
            given = {name: t if t is None else t[span] for name, t in given.items()}
        if self.width < self.format.bits:
            given = self._layout.narrowed(given, self.format, self.width)
        r = self.format.group_rows
        if r == 1:
            return given if index is None else {name: t if t is None else t[index] for name, t in given.items()}
        found = {}
        for name, t in given.items():
            if name in BLOCKED and t is not None:
                t = self.format.to_rows(t, self.shape[-2])
            found[name] = t if t is None or index is None else t[index]
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return found if found.dtype == tensor.dtype else tensor.to(found.device)

        return super()._apply(moved, recurse)


def _of_blocks(found: Mapping[str, Tensor | None], format: Format) -> dict[str, Tensor | None]:
    """Scales and zeros of each row as those of each block."""
    r = format.group_rows
    return {name: t[..., ::r, :] if r > 1 and name in BLOCKED and t is not None else t for name, t in found.items()}


@cache
def _of_floats(format: Format) -> Format:
    """The format of which nothing but the matrix is read."""
    return dataclasses.replace(format, activation_bits=None, inputs=Inputs())


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
