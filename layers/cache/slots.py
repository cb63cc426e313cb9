"""The slots of a cache: a key, a value and a position each, and what a policy adds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoo.layers.attention.keys import EMPTY
from zoo.layers.cache.buffer import widened, written
from zoo.layers.state import State

if TYPE_CHECKING:
    from zoo.layers.cache.policy import Policy

FILLERS = {"position": EMPTY}  # of free slots, where not 0


def taken(tensor: Tensor, slots: Tensor) -> Tensor:
    """The slots (B, 1 or H, n) of a tensor (B, H, capacity, ...)."""
    return tensor.take_along_dim(slots.view(*slots.shape, *[1] * (tensor.dim() - 3)), 2)


def best(score: Tensor, count: int | Tensor) -> tuple[Tensor, Tensor | None]:
    """The slots (B, 1 or H, n) of the largest scores, as many as ``count``, an int or (B,); and which of them there
    are in rows with fewer, None for all."""
    most = int(count.max()) if isinstance(count, Tensor) else count
    found = score.topk(min(most, score.shape[-1]), dim=-1).indices
    if isinstance(count, int):
        return found, None
    rank = torch.arange(found.shape[-1], device=score.device)
    return found, (rank < count[:, None, None]).expand_as(found)


@dataclass
class Slots(State):
    """Tensors with a slot in dimension 2, of which the first ``filled`` are in use.

    Attributes:
        policy: what is kept, and by which store.
        data: "key" and "value" (B, H, capacity, d) or what the store makes of them, "position" (B, 1 or H, capacity)
            with ``EMPTY`` where a row holds no token, and those of the policy.
        notes: the policy's tensors (B, ...) of a row.
        whole: every slot in use holds a token in every row.
        evicted: some slot has been evicted.
    """

    policy: Policy
    data: dict[str, Tensor]
    notes: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    filled: int = 0
    whole: bool = True
    evicted: bool = False

    def add(self, name: str, heads: int, *size: int, dtype: torch.dtype = torch.float32) -> None:
        """Give each slot a further tensor (B, heads, capacity, *size), which is 0 for a new token."""
        like = self.data["position"]
        self.data[name] = like.new_zeros(len(like), heads, like.shape[2], *size, dtype=dtype)

    def held(self, name: str) -> Tensor:
        """The slots in use of one of ``data``."""
        return self.data[name][:, :, : self.filled]

    def renew(self, name: str, tensor: Tensor) -> None:
        """Replace the slots in use of one of ``data``, or the keys or values."""
        parts = self.policy.store.encode(tensor) if name in ("key", "value") else {"": tensor}
        for ending, part in parts.items():
            free = self.data[name + ending][:, :, self.filled :]
            self.data[name + ending] = torch.cat([part.to(free.dtype), free], dim=2)

    @property
    def key(self) -> Tensor:
        """Keys (B, H, filled, d)."""
        return self._decoded("key")

    @property
    def value(self) -> Tensor:
        """Values (B, H, filled, d)."""
        return self._decoded("value")

    @property
    def position(self) -> Tensor:
        """Positions (B, 1 or H, filled), ``EMPTY`` where a row holds no token."""
        return self.held("position")

    @property
    def real(self) -> Tensor:
        """(B, 1 or H, filled), where a slot holds a token."""
        return self.position != EMPTY

    @property
    def heads(self) -> int:
        """Key-value heads."""
        return next(tensor.shape[1] for name, tensor in self.data.items() if name.startswith("value"))

    @property
    def slot_bytes(self) -> int:
        """Memory of a slot of one row, in all heads."""
        return sum(t.element_size() * t.shape[1] * t.shape[3:].numel() for t in self.data.values())

    def append(self, key: Tensor, value: Tensor, position: Tensor) -> None:
        """Fill the next slots: key and value (B, H, n, d) at positions (n,) or (B, n)."""
        start, self.filled = self.filled, self.filled + key.shape[2]
        if self.filled > self.data["position"].shape[2]:
            self.reserve(self.filled + max(8, self.filled // 8))
        batch, heads = self.data["position"].shape[:2]
        new = {"position": position.expand(batch, -1)[:, None].expand(-1, heads, -1)}
        for name, vectors in (("key", key), ("value", value)):
            new |= {name + ending: part for ending, part in self.policy.store.encode(vectors).items()}
        for name, buffer in self.data.items():
            fresh = new[name] if name in new else torch.zeros_like(buffer[:, :, start : self.filled])
            self.data[name] = written(buffer, fresh, start, 2)
        self.whole = self.whole and position.dim() == 1

    def reserve(self, capacity: int) -> None:
        """Have memory for so many slots."""
        for name, buffer in self.data.items():
            grown = widened(buffer, capacity, 2, FILLERS.get(name, 0))
            self.data[name] = self.policy.store.placed(grown) if name.startswith(("key", "value")) else grown

    def prefetch(self) -> None:
        """Announce to the store that the slots will be attended to soon."""
        for name, buffer in self.data.items():
            if name.startswith(("key", "value")) and buffer.numel():
                self.policy.store.prefetch(buffer)

    @property
    def bytes_by_place(self) -> dict[str, int]:
        """``nbytes`` by where they are: "device", "host" or "disk"."""
        stored = {id(tensor) for name, tensor in self.data.items() if name.startswith(("key", "value"))}
        found: dict[str, int] = {}
        for _, tensor in self.tensors():
            place = self.policy.store.where if id(tensor) in stored else "device"
            found[place] = found.get(place, 0) + tensor.nbytes
        return found

    def shrink(self, score: Tensor, slots: int | Tensor, *, ordered: bool = False) -> None:
        """Keep the slots with the best scores.

        Args:
            score: (B, 1 or H, filled), inf for what stays in any case.
            slots: how many stay, an int or (B,).
            ordered: in the order that they have, which takes a copy of all where one goes.
        """
        score = score.masked_fill(~self.real, -torch.inf)
        if isinstance(slots, Tensor):
            rank = score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
            self.keep(rank < slots[:, None, None])
        elif self.filled - slots == 1 and not ordered:
            self.drop(score.argmin(dim=-1, keepdim=True))
        elif self.filled > slots:
            best = score.topk(slots, dim=-1).indices.sort(dim=-1).values
            self.take(best, self.real.gather(2, best))

    def keep(self, mask: Tensor) -> None:
        """Evict all slots in use but those where the mask (B, 1 or H, filled) is True."""
        mask = mask & self.real
        if bool(mask.all()):
            return
        width = int(mask.sum(-1).max()) if mask.numel() else 0
        order = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)[..., :width]
        self.take(order, mask.gather(2, order))

    def take(self, slots: Tensor, real: Tensor | None = None) -> None:
        """The slots (B, 1 or H, n) become all that are in use, in this order; where ``real`` is False there is none."""
        for name, buffer in self.data.items():
            self.data[name] = taken(buffer[:, :, : self.filled], slots)
        self.filled, self.evicted = slots.shape[2], True
        if real is not None:
            self.whole = bool(real.all())
            self.data["position"] = self.data["position"].masked_fill(~real, EMPTY)
        self.reserve(self.filled + max(8, self.filled // 16))

    def drop(self, slot: Tensor) -> None:
        """Evict one slot (B, 1 or H, 1), whose place the last one takes."""
        for name, buffer in self.data.items():
            last = buffer[:, :, self.filled - 1 : self.filled]
            index = slot.view(*slot.shape, *[1] * (buffer.dim() - 3)).expand_as(last)
            if buffer.is_floating_point() and (torch.is_grad_enabled() or buffer.requires_grad):
                self.data[name] = buffer.scatter(2, index, last)
            else:
                buffer.scatter_(2, index, last.clone())
        self.filled, self.evicted = self.filled - 1, True

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of all there is."""
        yield from super().tensors()
        for group in ("data", "notes"):
            for name, tensor in getattr(self, group).items():
                yield f"{group}.{name}", tensor

    def map(self, function: Callable[[str, Tensor], Tensor]) -> None:
        """See ``State.map``."""
        for name, tensor in list(State.tensors(self)):
            setattr(self, name, function(name, tensor))
        for group in ("data", "notes"):
            mapped = {name: function(f"{group}.{name}", tensor) for name, tensor in getattr(self, group).items()}
            setattr(self, group, mapped)
        if self.committed is not None:
            self.committed = self.committed.mapped(function)

    @property
    def wide(self) -> tuple[str, ...]:  # type: ignore[override]
        """All but keys and values stay in float32 or wider."""
        return tuple(name for name, _ in self.tensors() if not name.startswith(("data.key", "data.value")))

    def _decoded(self, name: str) -> Tensor:
        parts = {full[len(name) :]: self.held(full) for full in self.data if full.partition(".")[0] == name}
        return self.policy.store.decode(parts, self.data["position"].device)

    def _copy(self):
        copied = super()._copy()
        copied.data, copied.notes = dict(self.data), dict(self.notes)
        return copied
