"""The product with a matrix most of whose numbers are zero."""

from zoo.kernels.sparse_matmul.bitmap import compress, places, row_starts
from zoo.kernels.sparse_matmul.op import sparse_matmul
from zoo.kernels.sparse_matmul.reference import dense

__all__ = ["compress", "dense", "places", "row_starts", "sparse_matmul"]
