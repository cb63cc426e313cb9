"""A residual block whose two functions add to two streams in turns, so that it can be computed backwards."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from zoo.kernels.dispatch import compute_dtype
from zoo.language.block import Block
from zoo.layers import State
from zoo.layers.recast import recast
from zoo.layers.reversible import Branch


class CoupledBlock(Block):
    """y1 = x1 + mixer(norm(x2)), y2 = x2 + mlp(mlp_norm(y1)) of x = (x1, x2); the streams change places where there is
    no MLP. The first block of a model begins both streams as x, the last one gives their mean.

    The streams are float32 or wider, as undoing a sum loses what it rounds away.
    """

    first: bool
    last: bool

    @classmethod
    def of(cls, block: Block, first: bool, last: bool) -> CoupledBlock:
        """The same block, of the same parts."""
        made = recast(block, cls)
        made.first, made.last = first, last
        return made

    def forward(self, x: Tensor, state: State | None = None, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, 2 dim), in the first block (B, T, dim), -> the same, in the last block (B, T, dim)."""
        x1, x2 = self.enter(x).chunk(2, dim=-1)
        for branch in self.branches(state, seq_idx):
            x1, x2 = x2, x1 + branch.call(x2)
        return self.leave(torch.cat([x1, x2], dim=-1))

    def branches(self, state: State | None = None, seq_idx: Tensor | None = None) -> list[Branch]:
        """What adds to the streams, in order."""
        found = [Branch(partial(self._mix, state, seq_idx), nn.ModuleList([self.norm, self.mixer]))]
        if self.mlp is not None and self.mlp_norm is not None:
            found.append(Branch(partial(self._feed, seq_idx), nn.ModuleList([self.mlp_norm, self.mlp])))
        return found

    def enter(self, x: Tensor) -> Tensor:
        """Both streams (B, T, 2 dim)."""
        return torch.cat([x, x], dim=-1).to(compute_dtype(x)) if self.first else x

    def leave(self, y: Tensor) -> Tensor:
        """What goes on of the streams (B, T, 2 dim)."""
        return y.unflatten(-1, (2, -1)).mean(-2) if self.last else y

    def _mix(self, state: State | None, seq_idx: Tensor | None, x: Tensor) -> Tensor:
        return self.mixer(self.norm(x), state, seq_idx=seq_idx)

    def _feed(self, seq_idx: Tensor | None, x: Tensor) -> Tensor:
        assert self.mlp_norm is not None
        return self.feed_forward(self.mlp_norm(x), seq_idx)
