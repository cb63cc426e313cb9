"""What the codes of a record stand for: one file a layout, over this contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from zoo.kernels.integer_matmul import quantised_rows
from zoo.layers.quant.rounded import Straight

if TYPE_CHECKING:
    from zoo.layers.quant.format import Format

SCALES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
Tensors = Mapping[str, Any]
Sizes = dict[str, tuple[tuple[int, ...], torch.dtype] | None]


class Layout(ABC):
    """The tensors of a record: their sizes, how numbers become codes, what codes stand for, and the product.

    Attributes:
        widths: bits that a code may have.
        default: bits where none are asked for.
        has_zero: the number 0 has a code in every group, so that outliers may lie beside the codes.
        activation_widths: bits that activations may be rounded to.
        odd: they are rounded to odd integers.
        group: most columns of a group where no size is asked for; None for all of a row.
        options: fields of ``Format`` that it knows besides bits, group_size, scale_dtype and activation_bits.
    """

    widths: range = range(1, 9)
    default: int = 4
    has_zero: bool = True
    activation_widths: range = range(0)
    odd: bool = False
    group: int | None = 32
    options: tuple[str, ...] = ("group_rows", "outliers")

    def check(self, form: Format) -> None:
        """Raise a ValueError for options that do not go together."""
        return

    @abstractmethod
    def tensors(self, form: Format, rows: int, columns: int) -> Sizes:
        """Name -> size and dtype of the tensors of a matrix; None for one that the format leaves out. A "scale" or a
        "zero" has ``form.grid(rows, columns)``."""

    @abstractmethod
    def encode(self, matrix: Tensor, form: Format) -> dict[str, Tensor | None]:
        """The nearest codes of float32 matrices (..., N, C); scales and zeros for each row."""

    @abstractmethod
    def dequantise(self, tensors: Tensors, form: Format, columns: int) -> Tensor:
        """The numbers (..., N, C) of tensors with scales and zeros for each row, in float32."""

    def narrowed(self, tensors: Tensors, form: Format, width: int) -> Mapping[str, Any]:
        """The tensors of the numbers of a smaller width, where there is one in each number.

        Raises:
            ValueError: for a layout whose numbers hold none.
        """
        raise ValueError(f"layout {form.layout!r} has one width, that of its {form.bits} bits")

    def matmul(self, x: Tensor, tensors: Tensors, form: Format, bias: Tensor | None = None) -> Tensor:
        """x (..., C) times the transpose of one matrix (N, C), plus a bias (N,): (..., N) in the dtype of x."""
        if learns(x):
            return self.dense(x, tensors, form, bias)
        if form.activation_bits is None:
            return self.product(x, tensors, form, bias)
        rows = x.reshape(-1, x.shape[-1])
        y = self.integer_product(rows, tensors, form).to(x.dtype)
        return (y if bias is None else y + bias.to(y.dtype)).view(*x.shape[:-1], y.shape[-1])

    def product(self, x: Tensor, tensors: Tensors, form: Format, bias: Tensor | None) -> Tensor:
        """``matmul`` without a gradient, of activations as they are: straight from the codes where there is a way."""
        return self.dense(x, tensors, form, bias)

    def integer_product(self, x: Tensor, tensors: Tensors, form: Format) -> Tensor:
        """x (M, C), rounded to integers, times the integers of the matrix, exact before scales: (M, N)."""
        raise NotImplementedError

    def dense(self, x: Tensor, tensors: Tensors, form: Format, bias: Tensor | None) -> Tensor:
        """The product with the numbers, which are made again for the backward pass instead of kept."""
        if form.activation_bits is not None:
            rows = x.detach().reshape(-1, x.shape[-1])
            v, scale = quantised_rows(rows, form.activation_bits, odd=self.odd)
            x = Straight.apply(x, (v * scale).view(x.shape).to(x.dtype))  # type: ignore[assignment]

        def product(x: Tensor) -> Tensor:
            w = self.dequantise(tensors, form, x.shape[-1])
            return F.linear(x, w.to(x.dtype), None if bias is None else bias.to(x.dtype))

        learning = learns(x) or any(t is not None and learns(t) for t in tensors.values())
        return checkpoint(product, x, use_reentrant=False) if learning else product(x)


def learns(x: Tensor) -> bool:
    """Whether a gradient of x is recorded."""
    return torch.is_grad_enabled() and x.requires_grad


def stored(scale: Tensor, form: Format) -> Tensor:
    """Scales in their stored dtype; 1 where all weights are zero."""
    return torch.where(scale > 0, scale, torch.ones_like(scale)).to(SCALES[form.scale_dtype])


def in_groups(matrix: Tensor, form: Format) -> Tensor:
    """(..., N, C) -> (..., N, G, columns of a group)."""
    return matrix.unflatten(-1, (form.groups(matrix.shape[-1]), -1))


def largest(matrix: Tensor, form: Format) -> Tensor:
    """max |w| of each block, for each of its rows: (..., N, G)."""
    return form.over_rows(in_groups(matrix, form).abs().amax(-1))
