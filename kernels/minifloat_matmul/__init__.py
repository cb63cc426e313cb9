"""The product with a matrix of floating-point numbers of a few bits."""

from zoo.kernels.minifloat_matmul.op import minifloat_matmul
from zoo.kernels.minifloat_matmul.reference import dequantise, numbers

__all__ = ["dequantise", "minifloat_matmul", "numbers"]
