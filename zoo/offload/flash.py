"""Neurons of feed-forward layers, read when a ReLU lets them through."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from types import MethodType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.mlp import SquaredReLU, SwiGLU
from zoo.layers.options import require_at_least
from zoo.offload.files import Piece
from zoo.offload.policy import Offload, Part, watched
from zoo.offload.slots import Traffic


@dataclasses.dataclass(frozen=True, kw_only=True)
class LLMInAFlash(Offload, name="llm_in_a_flash"):
    r"""LLM in a flash: of a feed-forward layer with a ReLU the rows that let neurons through stay, and of the others
    those of the last tokens' active neurons; what is new is read, a bundle a neuron.

    .. math:: \text{bytes}_t = 2 d b \, \Big| A_t \setminus \bigcup_{s = t - k}^{t - 1} A_s \Big|

    for the active neurons A of passes of d numbers of b bytes in two matrices, which lie side by side in a file that is
    written for it. Which neurons are active is said by the layer's own first matrix, so nothing is missed; the paper
    has a small trained predictor in its place, which misses a few, and keeps attention and embedding as here.

    Paper: Alizadeh et al., "LLM in a flash", arXiv 2312.11514.
    """

    paper: ClassVar[str] = "2312.11514"
    bundles: ClassVar[bool] = True

    window: int | None = 5
    """k: passes whose active neurons are held; None for as many neurons as there is room for."""

    def __post_init__(self):
        require_at_least(1, window=self.window)

    def parts(self, model: Any) -> list[Part]:
        """The matrices behind the ReLUs.

        Raises:
            ValueError: for a model without such layers.
        """
        found = [Part(module, _behind(module)) for block in model.blocks for module in block.modules()]
        parts = [part for part in found if part.names]
        if not parts:
            raise ValueError(
                f"{type(model).__name__} has no feed-forward layers of a ReLU, whose zeros are left on the disk: take "
                "policy='tpi_llm'"
            )
        return parts

    def bundled(self, part: Part, tensors: Sequence[Tensor]) -> Tensor:
        """(neurons, 1 or 2 dim): rows into a neuron and out of it."""
        return torch.cat([*tensors[:-1], tensors[-1].mT], 1)

    def least(self, parts: Sequence[Part]) -> int:
        """A neuron a layer."""
        return sum(_bytes(part) for part in parts)

    def install(self, parts: Sequence[Part], pieces: Sequence[Sequence[Piece]], room: int) -> Neurons:
        """See ``Offload``."""
        return Neurons(self, parts, [bundle for (bundle,) in pieces], room // self.least(parts))


class Neurons:
    """The neurons of all layers that are held.

    Args:
        policy: what is held, and for how long.
        parts: the layers.
        pieces: where their bundles are.
        count: neurons of a layer that there is room for.
    """

    def __init__(self, policy: LLMInAFlash, parts: Sequence[Part], pieces: Sequence[Piece], count: int):
        self.traffic = Traffic()
        self.tables = [Table(piece, min(count, piece.shape[0]), policy.window, self.traffic) for piece in pieces]
        for part, table in zip(parts, self.tables, strict=True):
            watched(part.module)
            part.module.forward = MethodType(partial(_forward, table), part.module)

    @property
    def nbytes(self) -> int:
        """Memory of the neurons."""
        return sum(table.memory.nbytes for table in self.tables)


class Table:
    """Bundles of some neurons of a layer, in any order.

    Args:
        piece: of all of them, (neurons, width).
        count: room.
        window: passes without use after which a neuron goes; None for none.
        traffic: what was read.

    Attributes:
        row: (neurons,), where each is, -1 for nowhere.
        last: (neurons,), the pass in which it was active last.
    """

    def __init__(self, piece: Piece, count: int, window: int | None, traffic: Traffic):
        self.piece, self.window, self.traffic, self.now = piece, window, traffic, 0
        self.memory = torch.empty(count, piece.shape[1], dtype=piece.dtype)
        self.row = torch.full((piece.shape[0],), -1)
        self.last = torch.zeros(piece.shape[0], dtype=torch.int64)

    def passes(self) -> None:
        """Another pass begins: what was not active for ``window`` of them goes."""
        self.now += 1
        if self.window is not None:
            self.row.masked_fill_(self.last < self.now - self.window, -1)

    def take(self, neurons: Tensor) -> Tensor:
        """The bundles (n, width) of neurons (n,), no more than there is room for; the longest unused make room."""
        self.last[neurons] = self.now
        missing = neurons[self.row[neurons] < 0]
        if len(missing):
            held = (self.row >= 0).nonzero()[:, 0]
            spare = held[~torch.isin(held, neurons)]
            excess = len(held) + len(missing) - len(self.memory)
            if excess > 0:
                self.row[spare[self.last[spare].argsort()[:excess]]] = -1
            taken = torch.zeros(len(self.memory), dtype=torch.bool)
            taken[self.row[self.row >= 0]] = True
            free = (~taken).nonzero()[: len(missing), 0]
            self.memory[free] = self.read(missing)
            self.row[missing] = free
        self.traffic.uses += len(neurons)
        return self.memory[self.row[neurons]]

    def read(self, neurons: Tensor) -> Tensor:
        """Bundles (n, width) from the file; those of neighbours at once."""
        into = torch.empty(len(neurons), self.piece.shape[1], dtype=self.piece.dtype)
        ends = [*((neurons[1:] - neurons[:-1] != 1).nonzero()[:, 0] + 1).tolist(), len(neurons)]
        start = 0
        for end in ends:
            self.piece.rows(int(neurons[start]), into[start:end])
            start = end
        self.traffic.loads, self.traffic.bytes = self.traffic.loads + len(neurons), self.traffic.bytes + into.nbytes
        self.traffic.late += len(neurons)
        return into


def _forward(table: Table, layer: Any, x: Tensor) -> Tensor:
    """The layer's output, of the neurons that are not 0."""
    squared = isinstance(layer, SquaredReLU)
    opened = F.relu(layer.w1(x))
    opened = opened.square() if squared else opened
    table.passes()
    active = opened.flatten(0, -2).any(0).nonzero()[:, 0].cpu()
    y = torch.zeros_like(x)
    for neurons in active.split(len(table.memory)):
        bundles, hidden = table.take(neurons).to(x.device), opened[..., neurons.to(x.device)]
        if not squared:
            bias = layer.w3.bias
            up = x @ bundles[:, : x.shape[-1]].mT
            hidden = hidden * (up if bias is None else up + bias[neurons.to(x.device)])
        y = y + hidden @ bundles[:, -x.shape[-1] :]
    return y if layer.w2.bias is None else y + layer.w2.bias


RELUS: tuple[Callable[..., Tensor], ...] = (F.relu, torch.relu)


def _behind(module: nn.Module) -> tuple[str, ...]:
    """Names of the matrices of a feed-forward layer that a ReLU is before; none of anything else."""
    if type(module) is SquaredReLU:
        return ("w2.weight",)
    if type(module) is SwiGLU and (module.act in RELUS or isinstance(module.act, nn.ReLU)):
        return ("w3.weight", "w2.weight")
    return ()


def _bytes(part: Part) -> int:
    """Of a neuron."""
    return sum(w.nbytes for w in map(part.module.get_parameter, part.names)) // part.module.w1.out_features  # type: ignore[operator]
