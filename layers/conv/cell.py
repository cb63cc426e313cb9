"""Cells of the DARTS search space: small graphs whose edges are separable convolutions, poolings and skips."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.conv.conv_norm import ConvNorm
from zoo.layers.drop import DropPath

Edge = tuple[str, int]


class ReLUConvNorm(nn.Module):
    """y = bn(W relu(x)) at every position."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.conv = ConvNorm(in_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_dim, H, W) -> (B, out_dim, H, W)."""
        return self.conv(F.relu(x))


class FactorizedReduce(nn.Module):
    """Half the resolution, relu first: half the channels from the even pixels, half from the odd ones.

    Raises:
        ValueError: for an odd out_dim.
    """

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        if out_dim % 2:
            raise ValueError(f"out_dim must be even, got {out_dim}")
        self.even, self.odd = (ConvNorm(in_dim, out_dim // 2, stride=2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_dim, H, W) -> (B, out_dim, ceil(H / 2), ceil(W / 2)); beyond an odd side lie zeros."""
        x = F.relu(x)
        odd = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))[:, :, 1:, 1:]
        return torch.cat([self.even(x), self.odd(odd)], dim=1)


class SeparableConv(nn.Module):
    """y = bn(pointwise(depthwise(relu(x)))), once or, with the stride in the first, twice.

    Args:
        dim: channels.
        kernel_size, stride, dilation: of the depthwise convolutions.
        repeats: 1 or 2.
    """

    def __init__(self, dim: int, kernel_size: int, stride: int = 1, dilation: int = 1, repeats: int = 2):
        super().__init__()
        padding = dilation * (kernel_size // 2)
        strides = [stride, *[1] * (repeats - 1)]
        self.depthwise = nn.ModuleList(
            nn.Conv2d(dim, dim, kernel_size, s, padding, dilation, groups=dim, bias=False) for s in strides
        )
        self.pointwise = nn.ModuleList(ConvNorm(dim, dim) for _ in strides)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, H, W) -> (B, dim, ceil(H / stride), ceil(W / stride))."""
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            x = pointwise(depthwise(F.relu(x)))
        return x


def _skip(dim: int, stride: int) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(dim, dim)


OPERATIONS: dict[str, Callable[[int, int], nn.Module]] = {  # (channels, stride) -> module
    "skip_connect": _skip,
    "max_pool_3x3": lambda dim, stride: nn.MaxPool2d(3, stride, 1),
    "avg_pool_3x3": lambda dim, stride: nn.AvgPool2d(3, stride, 1, count_include_pad=False),
    "sep_conv_3x3": lambda dim, stride: SeparableConv(dim, 3, stride),
    "sep_conv_5x5": lambda dim, stride: SeparableConv(dim, 5, stride),
    "dil_conv_3x3": lambda dim, stride: SeparableConv(dim, 3, stride, dilation=2, repeats=1),
    "dil_conv_5x5": lambda dim, stride: SeparableConv(dim, 5, stride, dilation=2, repeats=1),
}


class CellGraph(nn.Module, ABC):
    r"""The outputs of the two cells before -> that of the last one and of this one.

    .. math:: s_i = f_i(s_0, \ldots, s_{i-1}), \quad y = [s_2, s_3, \ldots]

    where s_0, s_1 are the two inputs brought to ``dim`` channels. A subclass says what a node makes of those before.

    Args:
        dims: channels of the two inputs.
        dim: of each node; the output has one ``dim`` a node.
        nodes: how many.
        halve_first: the first input has twice the resolution.
    """

    def __init__(self, dims: tuple[int, int], dim: int, nodes: int, halve_first: bool):
        super().__init__()
        self.preprocess0 = (FactorizedReduce if halve_first else ReLUConvNorm)(dims[0], dim)
        self.preprocess1 = ReLUConvNorm(dims[1], dim)
        self.nodes = nodes

    def forward(self, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Maps of the two cells before -> the second of them and this cell's (B, dim * nodes, H, W)."""
        states = [self.preprocess0(inputs[0]), self.preprocess1(inputs[1])]
        for node in range(self.nodes):
            states.append(self.node(node, states))
        return inputs[1], torch.cat(states[2:], dim=1)

    @abstractmethod
    def node(self, index: int, states: list[Tensor]) -> Tensor:
        """s_i of the states before it, i being ``index`` + 2."""


class Cell(CellGraph):
    r"""A cell whose every node sums two earlier states, each through an operation:

    .. math:: s_i = o(s_a) + o'(s_b)

    Args:
        dims, dim, halve_first: see ``CellGraph``.
        edges: (operation, node it comes from) of every edge, two a node, in order.
        reduction: halve the resolution on edges from the inputs.
        drop_path: stochastic depth of every edge that is not the identity.

    Raises:
        ValueError: for an unknown operation, an odd number of edges, or one that comes from a later node.

    Paper: Liu et al., "DARTS", arXiv 1806.09055.
    """

    def __init__(
        self,
        dims: tuple[int, int],
        dim: int,
        edges: Sequence[Edge],
        *,
        reduction: bool = False,
        halve_first: bool = False,
        drop_path: float = 0.0,
    ):
        check_edges(edges)
        super().__init__(dims, dim, len(edges) // 2, halve_first)
        self.sources = [source for _, source in edges]
        self.ops = nn.ModuleList(OPERATIONS[name](dim, 2 if reduction and source < 2 else 1) for name, source in edges)
        self.drop_path = DropPath(drop_path)

    def node(self, index: int, states: list[Tensor]) -> Tensor:
        """The sum of its two edges."""
        return self._edge(states, 2 * index) + self._edge(states, 2 * index + 1)

    def _edge(self, states: list[Tensor], index: int) -> Tensor:
        op = self.ops[index]
        y = op(states[self.sources[index]])
        return y if isinstance(op, nn.Identity) else self.drop_path(y)


def check_edges(edges: Sequence[Edge]) -> None:
    """Raise a ValueError unless these are edges of a cell."""
    unknown = [name for name, _ in edges if name not in OPERATIONS]
    if unknown:
        raise ValueError(f"unknown operations {unknown}; a cell is made of {list(OPERATIONS)}")
    late = [edge for index, edge in enumerate(edges) if not 0 <= edge[1] < 2 + index // 2]
    if len(edges) % 2 or not edges or late:
        raise ValueError(
            f"a cell has two edges a node, each from an earlier node (0 and 1 are the inputs), got {len(edges)} edges"
            + (f", and too late {late}" if late else "")
        )
