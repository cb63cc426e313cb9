"""The states of a recurrent mixer along the branches of a tree of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.layers.state import State


class Tree:
    """How the nodes of each row's tree hang together.

    Attributes:
        parent: (B, N), the number of the node before each, negative for the text.
        depth: (B, N), how many nodes come before each, 0 for those that follow the text itself.
        seen: (B, N, N), whether node j is node i or one of its ancestors.
    """

    def __init__(self, batch: int, device: torch.device):
        self.parent = self.depth = torch.zeros(batch, 0, dtype=torch.int64, device=device)
        self.seen = torch.zeros(batch, 0, 0, dtype=torch.bool, device=device)

    def grow(self, parent: Tensor) -> None:
        """Add nodes whose parents (B, m) are in the tree, or come earlier among the new ones; negative for the text."""
        batch, count = self.depth.shape
        size, rows = count + parent.shape[1], torch.arange(batch, device=parent.device)
        seen = torch.eye(size, dtype=torch.bool, device=parent.device).repeat(batch, 1, 1)
        seen[:, :count, :count] = self.seen
        for node, above in enumerate(parent.unbind(1), count):
            seen[:, node] |= seen[rows, above.clamp(min=0)] & (above >= 0)[:, None]
        self.parent = torch.cat([self.parent, parent], 1)
        self.seen, self.depth = seen, seen.sum(-1) - 1


@dataclass
class BranchedState(State):
    """The states after the nodes of a tree, beside the one after the text, which nothing changes before ``accept``.

    Nodes of equal depth are the rows of a batch, each of which begins at the state of its parent. So nothing is read
    twice, whatever branches share, and a branch that is accepted leaves its last state.

    Attributes:
        row: (B, N), of each node among those of its depth.
        text: the state after the text.
        tree: which the nodes are of.
        levels: the states of each depth.
    """

    row: Tensor
    text: State = field(kw_only=True)
    tree: Tree = field(kw_only=True)
    levels: list[State] = field(kw_only=True, default_factory=list)

    @classmethod
    def beside(cls, text: State, tree: Tree) -> BranchedState:
        """Without nodes."""
        return cls(tree.depth, text=text, tree=tree)

    def read(self, forward: Callable[[Tensor, State], Tensor], x: Tensor) -> Tensor:
        """The newest nodes x (B, m, dim), each from the state of its parent: (B, m, out_dim).

        Args:
            forward: (n, 1, dim) and n states, which it advances, to (n, 1, out_dim).
            x: inputs of the mixer.
        """
        first = self.row.shape[1]
        self.row = F.pad(self.row, (0, x.shape[1]))
        depth, outputs, order = self.tree.depth[:, first:], [], []
        for level in depth.unique().tolist():
            place = batch, node = (depth == level).nonzero(as_tuple=True)
            above = self.tree.parent[batch, first + node]
            states = self.levels[level - 1].select(self.row[batch, above]) if level else self.text.select(batch)
            outputs.append(forward(x[place][:, None], states)[:, 0])
            order.append(batch * x.shape[1] + node)
            self.row[batch, first + node] = self._hold(level, states, len(batch))
        return torch.cat(outputs)[torch.cat(order).argsort()].unflatten(0, x.shape[:2])

    def accept(self, path: Tensor) -> None:
        """The text goes on by the nodes (B, n), one after the other."""
        last, depth = path[:, -1:], path.shape[1] - 1
        row = self.row.gather(1, last).masked_fill(self.tree.depth.gather(1, last) != depth, 0)  # of rows that ended
        self.text.__dict__.update(self.levels[depth].select(row[:, 0]).__dict__)

    def _hold(self, level: int, states: State, count: int) -> Tensor:
        """Remember the states of further nodes of a depth; returns their rows (count,)."""
        if level == len(self.levels):
            self.levels.append(states)
            return torch.arange(count, device=self.row.device)
        held, added = self.levels[level], dict(states.tensors())
        start = len(next(tensor for _, tensor in held.tensors()))
        self.levels[level] = held.mapped(lambda name, tensor: torch.cat([tensor, added[name]]))
        return torch.arange(start, start + count, device=self.row.device)
