"""Which voxels of a grid there are, and where their neighbours are: a hash of coordinates."""

from __future__ import annotations

import dataclasses
from itertools import product
from math import prod

import torch
from torch import Tensor

Shape = tuple[int, int, int, int]
Triple = tuple[int, int, int]


class Sites:
    """Places on a grid of several clouds, each at most once, in any order.

    A place is hashed to its number in the grid, without collisions; the numbers are sorted, so that M questions take
    O(M log M) and no memory that grows with the grid.

    Args:
        coordinates: (M, 4) int64 of cloud, z, y and x.
        shape: clouds, and the grid's places along z, y and x.
        valid: (M,) bool, False for rows that are no place; all are places where None.
    """

    def __init__(self, coordinates: Tensor, shape: Shape, valid: Tensor | None = None):
        self.coordinates, self.shape, self.valid = coordinates, shape, valid
        keys = numbers(coordinates, shape)
        keys = keys if valid is None else torch.where(valid, keys, prod(shape))
        self._keys, self._order = keys.sort()
        self._known: dict[Triple, Tensor] = {}

    def __len__(self) -> int:
        return self.coordinates.shape[0]

    def find(self, coordinates: Tensor) -> Tensor:
        """Of coordinates (..., 4), on the grid or not, the rows (...) of these places; -1 where there is none."""
        if len(self) == 0:
            return coordinates.new_full(coordinates.shape[:-1], -1)
        keys = numbers(coordinates, self.shape)
        place = torch.searchsorted(self._keys, keys).clamp(max=len(self) - 1)
        there = (self._keys[place] == keys) & inside(coordinates, self.shape)
        return torch.where(there, self._order[place], -1)

    def neighbors(self, kernel: Triple) -> Tensor:
        """(M, K) rows of what lies around each place, -1 where nothing does: ``kernel`` places along z, y and x, odd
        numbers, the last axis fastest. Kept for the next call."""
        if kernel not in self._known:
            around = [[i - k // 2 for i in range(k)] for k in kernel]
            offsets = torch.tensor([(0, *offset) for offset in product(*around)], device=self.coordinates.device)
            self._known[kernel] = self.find(self.coordinates[:, None] + offsets)
        return self._known[kernel]


@dataclasses.dataclass(frozen=True)
class Voxels:
    """Features (M, C) and the places that have them."""

    features: Tensor
    sites: Sites


def numbers(coordinates: Tensor, shape: Shape) -> Tensor:
    """Of coordinates (..., 4) their places in the grid, counted with the last axis fastest."""
    cloud, z, y, x = coordinates.unbind(-1)
    return ((cloud * shape[1] + z) * shape[2] + y) * shape[3] + x


def inside(coordinates: Tensor, shape: Shape) -> Tensor:
    """Whether coordinates (..., 4) are on the grid."""
    sizes = torch.tensor(shape, device=coordinates.device)
    return ((coordinates >= 0) & (coordinates < sizes)).all(-1)


def distinct(coordinates: Tensor, shape: Shape, there: Tensor) -> Sites:
    """The different places among coordinates (..., 4) that ``there`` (...) says are some, in the order of the grid.

    Where shapes may not depend on numbers (``is_static``) there are further rows, which are no place, behind them.
    """
    cells = prod(shape)
    keys = torch.where(there, numbers(coordinates, shape), cells).flatten()
    if not is_static(coordinates):
        return Sites(_unravelled(keys[keys < cells].unique(), shape), shape)
    keys = keys.sort().values
    again = torch.nn.functional.pad(keys[1:] == keys[:-1], (1, 0))
    keys = torch.where(again, cells, keys).sort().values[:cells]
    return Sites(_unravelled(keys.clamp(max=cells - 1), shape), shape, keys < cells)


def is_static(tensor: Tensor) -> bool:
    """Whether shapes may not depend on numbers: traced by torch's compiler, and on the meta device."""
    return torch.compiler.is_compiling() or tensor.is_meta


def _unravelled(keys: Tensor, shape: Shape) -> Tensor:
    rest, found = keys, []
    for size in reversed(shape[1:]):
        found.append(rest % size)
        rest = rest // size
    return torch.stack([rest, *reversed(found)], -1)
