"""Attention between chosen pairs of blocks."""

from zoo.kernels.block_sparse_attention.op import block_sparse_attention

__all__ = ["block_sparse_attention"]
