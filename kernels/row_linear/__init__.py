"""The linear layer of a decoding step: few rows, a matrix that is read once."""

from zoo.kernels.row_linear.op import row_linear

__all__ = ["row_linear"]
