"""The product with a matrix of packed integers, and how they are packed."""

from zoo.kernels.lowbit_matmul.op import dequantise, lowbit_matmul
from zoo.kernels.lowbit_matmul.packing import pack, row_bytes, unpack

__all__ = ["dequantise", "lowbit_matmul", "pack", "row_bytes", "unpack"]
