"""A matrix as two block-diagonal ones with a permutation between them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.linear import BlockLinear


class Monarch(nn.Module):
    r"""y = P^T L P R x with R of N blocks of D / N, L of D / N blocks of N, and P, which makes columns of rows.

    R mixes within each of N groups of channels, L across the groups: every output hears every input, by
    D (D / N + N) products instead of D². Both start as the identity.

    Args:
        dim: D.
        num_blocks: N, a divisor of D.

    Raises:
        ValueError: for num_blocks that do not divide dim.

    Paper: Dao et al., "Monarch: Expressive Structured Matrices for Efficient and Accurate Training", arXiv 2204.00595.
    """

    def __init__(self, dim: int, num_blocks: int):
        super().__init__()
        self.within = BlockLinear(dim, num_blocks, bias=False)
        self.across = BlockLinear(dim, dim // num_blocks, bias=False)
        self.num_blocks = num_blocks
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The identity."""
        for blocks in self.parameters():
            blocks.zero_().diagonal(dim1=1, dim2=2).fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> (..., D)."""
        columns = self.within(x).unflatten(-1, (self.num_blocks, -1)).mT.flatten(-2)
        return self.across(columns).unflatten(-1, (-1, self.num_blocks)).mT.flatten(-2)
