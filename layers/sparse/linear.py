"""A linear layer over a matrix without its zeros."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.layers.precision import autocast_dtype
from zoo.layers.sparse.matrix import SparseMatrix


class SparseLinear(nn.Module):
    """y = x W^T + b with a sparse W: ``nn.Linear``'s place."""

    def __init__(self, weight: SparseMatrix, bias: nn.Parameter | None = None):
        super().__init__()
        self.weight, self.bias = weight, bias
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features), in the dtype of x, under autocast in its dtype."""
        low = autocast_dtype(x.device.type)
        return self.weight.matmul(x if low is None else x.to(low), self.bias)
