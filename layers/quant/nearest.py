"""Weights that are rounded to the nearest codes of a record while they learn."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.layers.quant.format import Format
from zoo.layers.quant.record import Record
from zoo.layers.quant.rounded import Straight


class Nearest(nn.Module):
    """What the nearest codes of a weight stand for; the gradient passes straight through.

    Args:
        form: of the record.
        mirrored: matrices lie the other way, as experts' do.
    """

    def __init__(self, form: Format, mirrored: bool = False):
        super().__init__()
        self.form, self.mirrored = form, mirrored

    def forward(self, weight: Tensor) -> Tensor:
        """Of the shape and dtype of the weight."""
        if weight.is_meta:
            return weight
        w = weight.detach()
        matrix = w.mT if self.mirrored else w.flatten(1) if w.dim() > 2 else w
        found = Record.nearest(matrix.float().contiguous(), self.form).dequantise().to(w.dtype)
        return Straight.apply(weight, found.mT if self.mirrored else found.view(w.shape))  # type: ignore[return-value]
