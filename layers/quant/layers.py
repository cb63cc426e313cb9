"""Layers over a record in place of a matrix of numbers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.linear import HeldLinear
from zoo.layers.precision import autocast_dtype
from zoo.layers.quant.record import Record


class Linear(HeldLinear):
    """y = x W^T + b with the matrix W in a record: ``nn.Linear``'s place, also as a model's head."""

    weight: Record


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


class Conv(nn.Module):
    """A convolution over one, two or three axes whose matrix, a row for each output channel, is in a record.

    Args:
        weight: (out_channels, in_channels / groups * taps).
        conv: whose sizes and bias are taken; it pads with zeros.
    """

    def __init__(self, weight: Record, conv: nn.Module):
        super().__init__()
        known: Any = conv
        self.weight, self.bias = weight, known.bias
        self.in_channels, self.out_channels, self.groups = known.in_channels, known.out_channels, known.groups
        self.kernel_size, self.stride, self.padding = known.kernel_size, known.stride, known.padding
        self.dilation, self.padding_mode = known.dilation, known.padding_mode
        self.function: Any = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel_size) - 1]

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_channels, ...) -> (B, out_channels, ...), in the dtype of x, under autocast in its dtype."""
        low = autocast_dtype(x.device.type)
        x = x if low is None else x.to(low)
        x = self.weight.rounded(x, axis=1)
        kernel = self.weight.dequantise().to(x.dtype).view(self.out_channels, -1, *self.kernel_size)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self.function(x, kernel, bias, self.stride, self.padding, self.dilation, self.groups)
