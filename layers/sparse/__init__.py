"""Matrices without their zeros, and the linear layers over them."""

from zoo.layers.sparse.linear import SparseLinear
from zoo.layers.sparse.matrix import SparseMatrix
from zoo.layers.sparse.pattern import Pattern

__all__ = ["Pattern", "SparseLinear", "SparseMatrix"]
