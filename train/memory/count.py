"""What autograd keeps for the backward pass, counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class Saved(NamedTuple):
    """Bytes that autograd kept: between forward and backward pass, and at most in either."""

    between: int
    most: int


def saved_bytes(model: nn.Module, call: Callable[[], Tensor]) -> Saved:
    """What autograd keeps in one training step, a storage counted once, parameters and buffers not at all.

    What goes through other hooks is not seen: of ``ssdtrain`` and ``memo`` (see ``Spool.most``), and of what torch's
    checkpoints compute again.

    Args:
        call: computes the loss; its backward pass is run here.
    """
    counter = _Counter((*model.parameters(), *model.buffers()))
    with saved_tensors_hooks(counter.pack, _Handle.unpack):
        loss = call()
        between = counter.live
        loss.backward()
    return Saved(between, counter.most)


class _Counter:
    def __init__(self, apart: Iterable[Tensor]):
        self.apart = {_place(tensor) for tensor in apart}
        self.handles: dict[int, int] = {}
        self.live = self.most = 0

    def pack(self, tensor: Tensor) -> _Handle:
        return _Handle(self, tensor)

    def change(self, place: int, size: int, by: int) -> None:
        """One handle more or less on a storage."""
        before = self.handles.get(place, 0)
        self.handles[place] = before + by
        if not before or not before + by:
            self.live += by * size
            self.most = max(self.most, self.live)


class _Handle:
    def __init__(self, counter: _Counter, tensor: Tensor):
        self.tensor, self.counter = tensor, counter
        self.place, self.size = _place(tensor), tensor.untyped_storage().nbytes()
        if self.place not in counter.apart:
            counter.change(self.place, self.size, 1)

    def __del__(self) -> None:
        if self.place not in self.counter.apart:
            self.counter.change(self.place, self.size, -1)

    def unpack(self) -> Tensor:
        return self.tensor


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
