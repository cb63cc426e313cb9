"""The product with a matrix that is a sum of scaled matrices of signs."""

from zoo.kernels.binary_matmul.op import binary_matmul
from zoo.kernels.binary_matmul.planes import pack_planes, unpack_planes
from zoo.kernels.binary_matmul.reference import dequantise

__all__ = ["binary_matmul", "dequantise", "pack_planes", "unpack_planes"]
