"""The layer of the classifiers made of long convolutions, over whole sequences: both ways, or one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels import long_conv
from zoo.layers.conv.long_conv import LearnedTaps


class BidirectionalLongConv(LearnedTaps):
    r"""Depthwise convolution of whole sequences with learned taps of the past and of the future.

    .. math:: y_t = \sum_{j=0}^{L-1} K_j u_{t-j} + \sum_{j=0}^{L-1} K'_j u_{t+1+j} + D u_t

    Inputs beyond both ends are 0, for sequences of any length. With ``directions=1`` there is no K'.

    Args: those of ``LearnedTaps``, with two directions.
    """

    def __init__(self, dim: int, kernel_length: int, *, directions: int = 2, **options: Any):
        super().__init__(dim, kernel_length, directions=directions, **options)

    def forward(self, u: Tensor) -> Tensor:
        """u (B, T, dim) -> (B, T, dim)."""
        past, *future = self.taps().chunk(self.directions)
        y = long_conv(u, past, D=self.D)
        for taps in future:
            y = y + long_conv(u.flip(1), F.pad(taps, (1, 0))).flip(1)
        return y


class LongConvMixer(nn.Module):
    r"""Several long convolutions of every channel, GELU, and a gated linear layer that mixes them.

    .. math:: y = \mathrm{GLU}\big(W \, \mathrm{gelu}([\mathrm{conv}_1(x), \ldots, \mathrm{conv}_n(x)]) + b\big)

    Args:
        dim: model width.
        kernel_length: taps of a direction.
        num_convs: n.
        bidirectional: also read the future.
        drop_rate: dropout before W.
        conv: (dim, kernel_length, directions=, **options) -> a convolution.
        options: of ``LearnedTaps``.

    Paper: Fu et al., arXiv 2302.06646; the layer of the authors' code for classification, with n = 2.
    """

    def __init__(
        self,
        dim: int,
        kernel_length: int,
        *,
        num_convs: int = 2,
        bidirectional: bool = True,
        drop_rate: float = 0.0,
        conv: type[BidirectionalLongConv] = BidirectionalLongConv,
        **options: Any,
    ):
        super().__init__()
        directions = 2 if bidirectional else 1
        self.convs = nn.ModuleList(conv(dim, kernel_length, directions=directions, **options) for _ in range(num_convs))
        self.drop = nn.Dropout(drop_rate)
        self.output_linear = nn.Linear(num_convs * dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        y = torch.cat([conv(x) for conv in self.convs], dim=-1)
        return F.glu(self.output_linear(self.drop(F.gelu(y))), dim=-1)
