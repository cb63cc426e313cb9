"""Slots of memory that weights pass through while a model runs: who is loaded, who waits, who makes room."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.offload.files import Piece


class Unit(NamedTuple):
    """What is loaded at once."""

    name: str
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that are read."""
        return sum(piece.nbytes for piece in self.pieces)

    @property
    def room(self) -> int:
        """Bytes of a slot."""
        return sum(piece.room for piece in self.pieces)


@dataclasses.dataclass
class Traffic:
    """What was read.

    Attributes:
        loads: units.
        bytes: of them.
        uses: how often a unit was used.
        late: uses of a unit that nobody had asked for before it was needed.
    """

    loads: int = 0
    bytes: int = 0
    uses: int = 0
    late: int = 0

    def __str__(self) -> str:
        return f"{self.bytes:,} bytes read in {self.loads} loads for {self.uses} uses, {self.late} of them late"


def oldest(idle: Sequence[int]) -> int:
    """Of units in the order in which they were loaded: a ring."""
    return idle[0]


class Slots:
    """Memory for a few of many units, which a thread reads ahead of their use.

    Args:
        units: all there are.
        count: slots, each as large as the largest unit.
        leaves: which of units that are not in use makes room, given in the order in which they were loaded.

    Attributes:
        held: unit -> its slot.
        pinned: units that never leave.
        traffic: what was read.
        loads: unit -> how often it was asked of the files.
    """

    def __init__(self, units: Sequence[Unit], count: int, leaves: Callable[[Sequence[int]], int] = oldest):
        self.units, self.leaves, self.traffic = units, leaves, Traffic()
        size = max(unit.room for unit in units)
        self.memory = [torch.empty(size, dtype=torch.uint8) for _ in range(count)]
        self.held: dict[int, int] = {}
        self.loads: Counter[int] = Counter()
        self.pinned: frozenset[int] = frozenset()
        self._free, self._used = list(range(count)), set[int]()
        self._loading: dict[int, Future[list[Tensor]]] = {}
        self._views: dict[int, list[Tensor]] = {}
        self._thread = ThreadPoolExecutor(1, "zoo-offload")

    @property
    def nbytes(self) -> int:
        """Memory of all slots."""
        return sum(slot.nbytes for slot in self.memory)

    @property
    def in_use(self) -> frozenset[int]:
        """Units that were taken and not released."""
        return frozenset(self._used)

    def announce(self, numbers: Sequence[int]) -> None:
        """Load units that will be used soon, in this order, as far as there is room beside them and those in use."""
        for number in numbers:
            if number not in self.held and not self._load(number, numbers):
                return

    @contextmanager
    def used(self, number: int) -> Iterator[list[Tensor]]:
        """Within it the tensors of a unit are there."""
        tensors = self.take(number)
        try:
            yield tensors
        finally:
            self.release(number)

    def take(self, number: int) -> list[Tensor]:
        """The tensors of a unit, which stay until ``release``."""
        self.traffic.uses += 1
        if number not in self.held:
            self.traffic.late += 1
            if not self._load(number, ()):
                raise RuntimeError(
                    f"all {len(self.memory)} slots are in use, there is none for {self.units[number].name}"
                )
        self._used.add(number)
        if number in self._loading:
            try:
                self._views[number] = self._loading.pop(number).result()
            except BaseException:
                self._used.discard(number)
                self._free.append(self.held.pop(number))
                raise
        return self._views[number]

    def wait(self) -> None:
        """Until all is read that was asked for."""
        self._thread.submit(int).result()

    def release(self, number: int) -> None:
        """A unit may make room for others."""
        self._used.discard(number)

    def _load(self, number: int, stay: Sequence[int]) -> bool:
        if self._free:
            slot = self._free.pop(0)
        else:
            stays = {*self._used, *self.pinned, *stay}
            idle = [one for one in self.held if one not in stays]
            if not idle:
                return False
            gone = self.leaves(idle)
            slot = self.held.pop(gone)
            self._views.pop(gone, None)
            if (reading := self._loading.pop(gone, None)) is not None:
                reading.cancel()
        self.held[number] = slot
        self.loads[number] += 1
        self._loading[number] = self._thread.submit(self._read, self.units[number], self.memory[slot])
        return True

    def _read(self, unit: Unit, memory: Tensor) -> list[Tensor]:
        """In the one thread, so that what was read into a slot before has been."""
        tensors, start = [], 0
        for piece in unit.pieces:
            tensors.append(piece.read(memory[start : start + piece.room]))
            start += piece.room
        self.traffic.loads, self.traffic.bytes = self.traffic.loads + 1, self.traffic.bytes + unit.nbytes
        return tensors
