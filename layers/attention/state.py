"""The key-value cache that forgets nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.layers.attention.keys import EMPTY, Attended, Keys, Place, Placed
from zoo.layers.cache.buffer import gathered, widened, written
from zoo.layers.cache.call import Attention
from zoo.layers.state import State, edges, is_traced

FILLERS = {"position": EMPTY, "ids": -1}  # of free slots


@dataclass
class KeyValueState(State):
    """Keys and values (B, H, capacity, d) of which the first ``filled`` slots are in use, in the order of time.

    Four clocks are kept apart: ``seen`` counts the steps given, ``filled`` the slots held, ``place`` tells the next
    position of each row, and ``committed`` what a rollback returns to. The capacity grows by doubling up to
    ``max_length``. Where gradients flow nothing is written in place.

    Attributes:
        position: (B, capacity), of each slot's token; ``EMPTY`` where a row has none. None while the slots hold the
            newest tokens of every row, without a gap.
        ids: (B, capacity), packed-sequence id of each slot's token, once ids were given; negative before the first.
        padding: (B, P), which of the first P steps were padding; later ones were not. None for none.
        latent: the keys and values of all heads are projections of what is held.
    """

    slots: ClassVar[dict[str, int]] = {"key": 2, "value": 2, "position": 1, "ids": 1}  # name -> dimension of the slots

    key: Tensor
    value: Tensor
    position: Tensor | None = None
    ids: Tensor | None = None
    padding: Tensor | None = None
    filled: int = 0
    max_length: int | None = None
    latent: bool = False

    @property
    def room(self) -> int | None:
        """Steps up to ``max_length``; None where there is none."""
        return None if self.max_length is None else self.max_length - self.seen

    def place(self, length: int, seq_idx: Tensor | None = None) -> Place:
        """Where the next ``length`` tokens stand; padding, negative ids, takes no position."""
        position = torch.arange(self.seen, self.seen + length, device=self.key.device)
        if self.padding is not None:
            position = position - self.padding.sum(1, keepdim=True)
        if seq_idx is None:
            return Place(position, None if self.seq_idx is None else self.seq_idx[:, None].expand(-1, length))
        padding = seq_idx < 0
        if is_traced(padding) or bool(padding.any()):
            position = (position - padding.cumsum(1)).masked_fill(padding, EMPTY)
        return Place(position, seq_idx, named=True)

    def append(self, key: Tensor, value: Tensor, place: Place | None = None, **more: Tensor) -> Attended:
        """Add the keys and values (B, H, T, d) of the next tokens; returns all that they may attend to.

        Args:
            place: from ``place``, of which None is the one without ids.
            more: further tensors a slot, of a state that has them.

        Raises:
            ValueError: when the tokens do not fit into ``max_length``.
        """
        place = self.place(key.shape[2]) if place is None else place
        keys = self.remember(Keys(key, value, place.position, place.ids), place, **more)
        return Attended(keys.key, keys.value, keys.mask(place))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, place: Placed, attention: Attention, *, noted: bool = False
    ) -> Tensor:
        """Remember the next tokens, and attend from them; see ``CacheState.attend``."""
        new = Keys(k, v, place.position, place.ids)
        keys = self.write(new) if noted else self.remember(new, place)  # type: ignore[arg-type]
        return attention.attend(q, keys.key, keys.value, keys.mask(place))

    def remember(self, new: Keys, place: Place, **more: Tensor) -> Keys:
        """Note the tokens at ``place`` and remember the keys of all of them; returns all that are held."""
        self.make_room(new.key.shape[2])
        self.advance(place)
        return self.write(new, **more)

    def advance(self, place: Place) -> None:
        """Note that the tokens at ``place`` have passed, remembered or not."""
        if place.ids is not None and place.named:
            ids, shape = self.ids, (len(self.key), self.key.shape[2])
            if ids is None:
                ids = place.ids.new_full(shape, -1) if self.seq_idx is None else self.seq_idx[:, None].expand(shape)
            self.ids = ids.where(ids >= 0, edges(place.ids)[0][:, None])  # what had no name is of the first sequence
            self.advance_sequence(place.ids)
            if place.position.dim() == 2:
                self.with_positions()
                padding = place.position == EMPTY
                before = padding[:, :0] if self.padding is None else self.padding
                self.padding = torch.cat([F.pad(before, (0, self.seen - before.shape[1])), padding], dim=1)
        self.seen += place.position.shape[-1]

    def write(self, new: Keys, **more: Tensor) -> Keys:
        """Remember keys of tokens that have been noted; returns all that are held."""
        self.make_room(new.key.shape[2])
        start, self.filled = self.filled, self.filled + new.key.shape[2]
        if new.position.dim() == 2:
            self.with_positions()
        position = None if self.position is None else new.position.expand(len(new.key), -1)
        for name, tensor in {"key": new.key, "value": new.value, "position": position, "ids": new.ids, **more}.items():
            if tensor is not None:
                setattr(self, name, written(getattr(self, name), tensor, start, self.slots[name]))
        return new if start == 0 else self.keys()

    def keys(self) -> Keys:
        """All that is held."""
        if self.position is None:
            position = torch.arange(self.seen - self.filled, self.seen, device=self.key.device)
        else:
            position = self.position[:, : self.filled]
        ids = None if self.ids is None else self.ids[:, : self.filled]
        held = self.key[:, :, : self.filled], self.value[:, :, : self.filled]
        return Keys(*held, position, ids)

    def keep(self, slots: Tensor) -> None:
        """Evict all but the ``slots`` (n,) or (B, n), ascending; the tokens keep their positions."""
        self.with_positions()
        slots = slots.expand(len(self.key), -1)
        for name, dim in self.slots.items():
            tensor = getattr(self, name)
            if tensor is not None:
                kept = gathered(tensor, slots, dim)
                setattr(self, name, widened(kept, tensor.shape[dim], dim, FILLERS.get(name, 0)))
        self.filled = slots.shape[1]

    def with_positions(self) -> KeyValueState:
        """This state, keeping the position of every slot from the beginning."""
        self.position = self._contiguous() if self.position is None else self.position
        return self

    def make_room(self, count: int) -> None:
        """Reserve ``count`` more slots, those without a token in any row first."""
        capacity = self.key.shape[2]
        if (
            self.filled + count > capacity
            and self.position is not None
            and len(self.position)
            and not is_traced(self.position)
        ):
            real = self.position[:, : self.filled] != EMPTY
            self.keep(real.to(torch.uint8).argsort(dim=1, stable=True)[:, self.filled - int(real.sum(1).max()) :])
        end = self.filled + count
        if self.max_length is not None and end > self.max_length:
            raise ValueError(
                f"the state holds at most {self.max_length} tokens, {self.filled} are in it and {count} more were "
                "given: call init_state with a larger max_length, or without one"
            )
        if end > capacity:
            capacity = min(max(end, 2 * capacity), self.max_length or 2 * end)
            for name, dim in self.slots.items():
                if getattr(self, name) is not None:
                    setattr(self, name, widened(getattr(self, name), capacity, dim, FILLERS.get(name, 0)))

    def reset(self) -> None:
        """Forget all tokens, keep the memory."""
        self.position = self.ids = self.padding = self.seq_idx = self.committed = None
        self.filled = self.seen = 0

    def crop(self, length: int) -> None:
        """Keep what belongs to the first ``length`` steps (negative: drop that many)."""
        length = max(0, min(self.seen, length if length >= 0 else self.seen + length))
        if length == 0:
            return self.reset()
        if self.position is None:
            self.filled = max(0, self.filled - (self.seen - length))
        else:
            self.padding = None if self.padding is None else self.padding[:, :length]
            after = length - (0 if self.padding is None else self.padding.sum(1, keepdim=True))
            self.position = self.position.masked_fill(self.position >= after, EMPTY)
            self.filled = min(self.filled, length)
        self.seen = length
        if self.committed is not None and self.committed.seen > length:
            self.committed = None
        if self.ids is not None and self.filled:
            position, ids = self._contiguous() if self.position is None else self.position, self.ids
            self.seq_idx = edges(ids.masked_fill(position == EMPTY, -1)[:, : self.filled])[1]

    def _contiguous(self) -> Tensor:
        """Positions (B, capacity) of slots that hold the newest tokens without a gap."""
        first = self.seen - self.filled
        position = torch.arange(first, first + self.key.shape[2], device=self.key.device).repeat(len(self.key), 1)
        return position if self.padding is None else position - self.padding.sum(1, keepdim=True)
