"""The product with a matrix of packed integers, and how they are packed."""

from zoo.kernels.lowbit_matmul.op import lowbit_matmul
from zoo.kernels.lowbit_matmul.packing import pack, row_bytes, unpack
from zoo.kernels.lowbit_matmul.reference import dequantise

__all__ = ["dequantise", "lowbit_matmul", "pack", "row_bytes", "unpack"]
