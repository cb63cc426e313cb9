"""Messages between processes, all of a moment at once."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from zoo.parallel.collectives import Group


class Exchange:
    """What a process sends and receives at a time."""

    def __init__(self, group: Group):
        self.group = group
        self.operations: list[dist.P2POp] = []
        self.received: list[Tensor] = []
        self.works: list[Any] = []

    def send(self, to: int, tensor: Tensor) -> None:
        """To a process by its number in the group."""
        self.operations.append(dist.P2POp(dist.isend, tensor.contiguous(), self._global(to), self.group))

    def receive(self, source: int, like: Tensor, which: int | None = None, had: int | None = None) -> None:
        """A tensor like that one, of some tokens: a half of (B, H, T, ...) or all; ``had`` says which that one has."""
        shape = list(like.shape)
        if which != had:
            shape[2] = shape[2] // 2 if had is None else shape[2] * 2
        self.received.append(like.new_empty(shape))
        self.operations.append(dist.P2POp(dist.irecv, self.received[-1], self._global(source), self.group))

    def start(self) -> None:
        """Everything is on its way."""
        self.works = dist.batch_isend_irecv(self.operations) if self.operations else []

    def done(self) -> list[Tensor]:
        """What came, in the order in which it was asked for."""
        for work in self.works:
            work.wait()
        return self.received

    def _global(self, rank: int) -> int:
        return dist.get_global_rank(self.group, rank % self.group.size())
