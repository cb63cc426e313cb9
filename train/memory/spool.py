"""Tensors in a nameless file: written and read back in the background, the newest of them kept in memory."""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

CHANGED = (
    "one of the variables needed for gradient computation has been modified by an inplace operation after it was saved "
    "for the backward pass"
)
AHEAD = 64  # storages that are looked at for what to read next


class Spool:
    """What is put in stays in memory while it is among the newest ``resident`` bytes, and goes to the file later.

    The file has no name: whatever ends the process, nothing of it stays. A storage that several tensors are views of
    is written once, unless they see little of it. Memory is bounded: besides the newest, at most ``resident`` bytes
    (or one storage) wait to be written, and as many are read ahead of their use, which is expected in the opposite
    order of ``put``.

    Args:
        folder: of the file; the system's for temporary files when None.
        resident: bytes.

    Attributes:
        written: bytes that went to the file.
        most: the most bytes that were held in memory at once.
    """

    def __init__(self, folder: Path | str | None = None, resident: int = 0):
        self.resident, self.written, self.most = resident, 0, 0
        with tempfile.TemporaryFile(dir=folder) as file:
            self.file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.file)
        self.end = self.held = self.waiting = self.ahead = 0
        self.lock = threading.RLock()
        self.known: dict[int, tuple[StorageWeakRef, weakref.ref[Held]]] = {}
        self.order: list[weakref.ref[Held]] = []
        self.next = 0  # to be written, of those in order
        self.writes: deque[Future[None]] = deque()

    def put(self, tensor: Tensor) -> Put:
        """Take in a tensor that nobody changes any more.

        Raises:
            OSError: an earlier one could not be written.
        """
        if 4 * tensor.nbytes < tensor.untyped_storage().nbytes():
            tensor = tensor.clone()
        with self.lock:
            found = Put(self._find(tensor) or self._take(tensor), tensor)
            while self.held - self.waiting > self.resident and self.next < len(self.order):
                self._write_oldest()
        while self.writes and (self.writes[0].done() or self.waiting > self.resident):
            self.writes.popleft().result()
        return found

    def _find(self, tensor: Tensor) -> Held | None:
        storage, held = self.known.get(tensor.untyped_storage()._cdata, (None, None))
        if storage is None or held is None or storage.expired():
            return None
        found = held()
        return found if found is not None and found.version == tensor._version else None

    def _take(self, tensor: Tensor) -> Held:
        held, storage = Held(self, tensor, len(self.order)), tensor.untyped_storage()
        self.known[storage._cdata] = StorageWeakRef(storage), weakref.ref(held)
        self.order.append(weakref.ref(held))
        self.grow(held.size)
        return held

    def _write_oldest(self) -> None:
        oldest = self.order[self.next]()
        self.next += 1
        if oldest is not None:
            self.waiting += oldest.size
            self.writes.append(_writer().submit(_write, self, self.order[self.next - 1], oldest.size))

    def grow(self, by: int) -> None:
        """So many bytes more, or less, are in memory."""
        self.held += by
        self.most = max(self.most, self.held)

    def read_ahead(self, number: int) -> None:
        """Begin to read what was put in before ``number``."""
        for reference in reversed(self.order[max(0, number - AHEAD) : number]):
            held = reference()
            if held is not None and held.data is None and held.reading is None:
                if self.ahead + held.size > self.resident:
                    return
                self.ahead += held.size
                self.grow(held.size)
                held.reading = _reader().submit(held.read)


class Host:
    """What is put in is in the host's pinned memory, and on its device again when it is asked for."""

    def put(self, tensor: Tensor) -> Moved:
        """Copy a tensor, in the order of its device's stream."""
        return Moved(torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True), tensor)


class Moved:
    """A tensor on the host."""

    def __init__(self, copied: Tensor, tensor: Tensor):
        self.copied, self.device = copied, tensor.device

    def get(self) -> Tensor:
        """The tensor on its device."""
        return self.copied.to(self.device, non_blocking=True)


class Put:
    """A tensor in a spool."""

    def __init__(self, held: Held, tensor: Tensor):
        self.held, self.dtype = held, tensor.dtype
        self.place = tensor.storage_offset(), tensor.shape, tensor.stride()
        self.conjugate, self.negative = tensor.is_conj(), tensor.is_neg()  # which its bytes do not tell

    def get(self) -> Tensor:
        """The tensor, bit for bit and laid out as it was.

        Raises:
            RuntimeError: it was changed.
        """
        storage = self.held.load().untyped_storage()
        found = torch.empty(0, dtype=self.dtype, device=storage.device).set_(storage, *self.place)
        found = found.conj() if self.conjugate else found
        return torch._neg_view(found) if self.negative else found


class Held:
    """The bytes of a storage: in memory as ``data``, in the file at ``start``, or both."""

    def __init__(self, spool: Spool, tensor: Tensor, number: int):
        self.spool, self.number = spool, number
        self.tensor, self.version = tensor, tensor._version  # tells whether it was changed
        storage = tensor.untyped_storage()
        whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        self.data: Tensor | None = whole.set_(storage, 0, (storage.nbytes(),), (1,))  # pyright: ignore
        self.size, self.device = storage.nbytes(), tensor.device
        self.start: int | None = None
        self.reading: Future[Tensor] | None = None
        self.changed = self.wanted = False

    def __del__(self) -> None:
        with self.spool.lock:
            if self.reading is not None:
                self.spool.ahead -= self.size
            if self.data is not None or self.reading is not None:
                self.spool.grow(-self.size)

    def is_changed(self) -> bool:
        """Whether somebody has changed the tensor while it was in memory."""
        return self.changed or (self.start is None and self.tensor._version != self.version)

    def load(self) -> Tensor:
        """Its bytes, which stay in memory from now on."""
        with self.spool.lock:
            if self.is_changed():
                raise RuntimeError(CHANGED)
            self.wanted, data, reading = True, self.data, self.reading
            self.spool.read_ahead(self.number)
        if data is not None:
            return data
        data = self.read() if reading is None else reading.result()
        with self.spool.lock:
            if self.data is None:
                self.data = data
                if self.reading is None:
                    self.spool.grow(self.size)
                else:
                    self.spool.ahead -= self.size
                    self.reading = None
            return self.data

    def read(self) -> Tensor:
        """Its bytes from the file."""
        assert self.start is not None
        found, done = torch.empty(self.size, dtype=torch.uint8), 0
        view = memoryview(found.numpy())  # pyright: ignore[reportArgumentType]
        while done < self.size:
            part = os.preadv(self.spool.file, [view[done:]], self.start + done)
            if not part:
                raise OSError(f"the file of activations ends {self.size - done} bytes too early")
            done += part
        return found.to(self.device)


def _write(spool: Spool, reference: weakref.ref[Held], size: int) -> None:
    """Write a storage and let go of it, unless nobody or the backward pass wants it by now."""
    held = reference()
    with spool.lock:
        if held is None or held.wanted or held.data is None:
            spool.waiting -= size
            return
        start, spool.end, data = spool.end, spool.end + size, held.data
    view, done = memoryview(data.cpu().numpy()), 0  # pyright: ignore[reportArgumentType]
    try:
        while done < size:
            done += os.pwrite(spool.file, view[done:], start + done)
    finally:
        with spool.lock:
            spool.waiting -= size
            if done == size:
                spool.written += size
                held.changed, held.start = held.is_changed(), start
                if not held.wanted:
                    del held.tensor
                    held.data = None
                    spool.grow(-size)


@cache
def _writer() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "activations-out")


@cache
def _reader() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "activations-in")
