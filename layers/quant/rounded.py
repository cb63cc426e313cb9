"""Numbers rounded to a floating-point format, and the gradient of what they were."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.kernels.common.minifloat import BlockScaled, FixedPoint, Minifloat, check_rounding


class Straight(torch.autograd.Function):
    """The second tensor, with the gradient of the first."""

    @staticmethod
    def forward(x: Tensor, found: Tensor) -> Tensor:
        return found.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *arriving):
        return arriving[0], None


class Rounded(nn.Module):
    """The nearest, or otherwise next, number of a format; the gradient passes straight through.

    Args:
        kind: the format.
        rounding: see ``Minifloat.round``; what is drawn comes from torch's global generator.
        saturate: what is too large becomes the largest number.
        axis: along which numbers share a scale, where the format has one.

    Raises:
        ValueError: for an unknown rounding.

    Paper: Carson and Chen, "Pychop: Emulating Low-Precision Arithmetic in Numerical Methods and Neural Networks", arXiv
    2504.07835; the gradient: Bengio et al., arXiv 1308.3432.
    """

    def __init__(
        self,
        kind: Minifloat | FixedPoint | BlockScaled,
        rounding: str = "nearest",
        saturate: bool = False,
        axis: int = -1,
    ):
        super().__init__()
        check_rounding(rounding)
        self.kind, self.rounding, self.saturate, self.axis = kind, rounding, saturate, axis

    def forward(self, x: Tensor) -> Tensor:
        """x, of any shape and a dtype that holds the format."""
        found = self.kind.round(x.detach().movedim(self.axis, -1), self.rounding, saturate=self.saturate)
        return Straight.apply(x, found.movedim(-1, self.axis))  # type: ignore[return-value]
