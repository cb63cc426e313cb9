"""Layers over a record in place of a matrix of numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.precision import autocast_dtype
from zoo.layers.quant.record import Record


class Linear(nn.Module):
    """y = x W^T + b with the matrix W in a record: ``nn.Linear``'s place, also as a model's head."""

    def __init__(self, weight: Record, bias: nn.Parameter | None = None):
        super().__init__()
        self.weight, self.bias = weight, bias
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features), in the dtype of x, under autocast in its dtype."""
        low = autocast_dtype(x.device.type)
        return self.weight.matmul(x if low is None else x.to(low), self.bias)


class Embedding(nn.Module):
    """Row i of the matrix in a record, for each index i: ``nn.Embedding``'s place.

    The rows are of the dtype that the model has: a buffer without elements keeps it.
    """

    def __init__(self, weight: Record, like: Tensor):
        super().__init__()
        self.weight = weight
        self.num_embeddings, self.embedding_dim = weight.shape
        place = None if like.is_meta else like.device  # where a model is built without memory, buffers are real
        self.register_buffer("like", torch.empty(0, dtype=like.dtype, device=place), persistent=False)

    def forward(self, index: Tensor) -> Tensor:
        """index (...) integers -> (..., embedding_dim)."""
        return self.weight.dequantise(index.flatten()).to(self.like.dtype).view(*index.shape, self.embedding_dim)  # type: ignore[arg-type]
