"""Cells in which every operation of the DARTS search space is present at once, weighted: what a search trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.batch_norm import BatchNorm2d
from zoo.layers.conv.cell import OPERATIONS, CellGraph, Edge


class Strengths(nn.Module):
    r"""How much each operation on each edge of a cell counts, and each edge among those into its node.

    .. math:: a_{ijo} = \mathrm{softmax}_o(\alpha_{ij}), \qquad b_{ij} = \mathrm{softmax}_i(\beta_{\cdot j})

    for the edge from state i to node j. The first operation is none at all, which adds zeros. All cells of a kind share
    these numbers. They need no gradient until a search asks for one.

    Args:
        nodes: of the cell; node j has 2 + j edges into it.

    Papers: Liu et al., "DARTS", arXiv 1806.09055; edge normalisation: Xu et al., "PC-DARTS", arXiv 1907.05737.
    """

    def __init__(self, nodes: int):
        super().__init__()
        self.into = [2 + node for node in range(nodes)]
        edges = sum(self.into)
        self.alpha = nn.Parameter(1e-3 * torch.randn(edges, 1 + len(OPERATIONS)), requires_grad=False)
        self.beta = nn.Parameter(1e-3 * torch.randn(edges), requires_grad=False)

    def forward(self) -> tuple[Tensor, Tensor]:
        """a (edges, 1 + operations), and b (edges,), the edges in the order of the nodes they lead to."""
        return self.alpha.softmax(1), torch.cat([beta.softmax(0) for beta in self.beta.split(self.into)])

    @torch.no_grad()
    def edges(self) -> tuple[Edge, ...]:
        """The cell that is left of it: of each edge the operation with the largest a b, of each node the two edges on
        which that is largest, the stronger first."""
        operations, edges = self()
        best = (operations[:, 1:] * edges[:, None]).max(1)
        found: list[Edge] = []
        for value, index in zip(best.values.split(self.into), best.indices.split(self.into), strict=True):
            kept = value.argsort(descending=True, stable=True)[:2].tolist()
            found += [(list(OPERATIONS)[index[source]], source) for source in kept]
        return tuple(found)


class MixedOperation(nn.Module):
    r"""All operations on the first of ``share`` parts of the channels, the others passing by:

    .. math:: y = \mathrm{shuffle}\big[\textstyle\sum_o a_o\, o(x_{1}),\; x_{2 \ldots K}\big]

    The shuffle deals the channels out anew, so that the next edge works on others. Poolings are followed by batch norm.

    Args:
        dim: channels.
        stride: 1, or 2, where what passes by is pooled by its maximum.
        share: K, 1 for all channels.

    Raises:
        ValueError: unless the parts are of equal, even size.

    Paper: Xu et al., "PC-DARTS", arXiv 1907.05737, section 3.2.
    """

    def __init__(self, dim: int, stride: int, share: int = 4):
        super().__init__()
        if share < 1 or dim % (2 * share):
            raise ValueError(f"dim must be a multiple of 2 * share, got dim {dim}, share {share}")
        part = dim // share
        made = {name: build(part, stride) for name, build in OPERATIONS.items()}
        self.ops = nn.ModuleList(
            nn.Sequential(op, BatchNorm2d(part)) if "pool" in name else op for name, op in made.items()
        )
        self.bypass = nn.Identity() if stride == 1 else nn.MaxPool2d(2, 2, ceil_mode=True)
        self.share, self.part = share, part

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """x (B, dim, H, W), weights (1 + operations,) of none and each operation -> (B, dim, ceil(H / stride), ...)."""
        chosen, others = x[:, : self.part], x[:, self.part :]
        mixed = torch.stack([w * op(chosen) for w, op in zip(weights[1:], self.ops, strict=True)]).sum(0)
        y = torch.cat([mixed, self.bypass(others)], dim=1) if self.share > 1 else mixed
        return y.unflatten(1, (self.share, self.part)).transpose(1, 2).flatten(1, 2)


class SearchCell(CellGraph):
    r"""A cell whose every node sums all earlier states, through mixed operations:

    .. math:: s_j = \textstyle\sum_{i < j} b_{ij}\, \mathrm{mixed}(s_i; a_{ij})

    Args:
        dims, dim, halve_first: see ``CellGraph``.
        strengths: a and b; several cells may have the same.
        reduction: halve the resolution on edges from the inputs.
        share: see ``MixedOperation``.
    """

    def __init__(
        self,
        dims: tuple[int, int],
        dim: int,
        strengths: Strengths,
        *,
        reduction: bool = False,
        halve_first: bool = False,
        share: int = 4,
    ):
        super().__init__(dims, dim, len(strengths.into), halve_first)
        self.strengths = strengths
        sources = [source for into in strengths.into for source in range(into)]
        self.ops = nn.ModuleList(MixedOperation(dim, 2 if reduction and i < 2 else 1, share) for i in sources)
        for module in self.modules():
            if isinstance(module, BatchNorm2d):  # a learned scale would hide how much an operation counts
                module.requires_grad_(False)

    def node(self, index: int, states: list[Tensor]) -> Tensor:
        """The weighted sum of all states before it."""
        operations, edges = self.strengths()
        first = sum(self.strengths.into[:index])
        ways = enumerate(states, first)
        return torch.stack([edges[way] * self.ops[way](x, operations[way]) for way, x in ways]).sum(0)
