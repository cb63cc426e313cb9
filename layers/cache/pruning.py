"""Tokens that end between two layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from zoo.layers.attention.keys import Place
from zoo.layers.cache.state import CacheState
from zoo.layers.state import State
from zoo.layers.states import parts


class Pruning:
    """One call of a model in which policies may end tokens between layers: fewer go on, at their own positions.

    What has ended leaves the residual stream as it was then.

    Args:
        states: of the layers, in order.
        x: the residual stream (B, T, D) before the first.
        seq_idx: (B, T), or None.
    """

    def __init__(self, states: Sequence[State], x: Tensor, seq_idx: Tensor | None):
        self.states, self.seq_idx, self.stream, self.length = states, seq_idx, x, x.shape[1]
        self.index: Tensor | None = None  # (B, n), places of those that go on

    @classmethod
    def of(cls, states: Sequence[State] | None, x: Tensor, seq_idx: Tensor | None) -> Pruning | None:
        """None where no policy prunes."""
        if states is None or not any(part.policy.prunes for part in governed_parts(states)):
            return None
        return cls(states, x, seq_idx)

    def after(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The residual stream (B, n, D) and the ids (B, n) for the next layer."""
        for part in governed_parts(self.states[layer : layer + 1]):
            later = [other for other in governed_parts(self.states[layer + 1 :]) if other.policy == part.policy]
            places = part.policy.after_layer(part, x, later)
            if places is not None:
                self._end(layer, x, places)
                x = x.take_along_dim(places[..., None], 1)
        if self.seq_idx is None or self.index is None:
            return x, self.seq_idx
        return x, self.seq_idx.gather(1, self.index)

    def whole(self, x: Tensor) -> Tensor:
        """The residual stream (B, T, D) after the last layer."""
        for part in governed_parts(self.states):
            part.given = None
        return x if self.index is None else self._scattered(x)

    def _end(self, layer: int, x: Tensor, places: Tensor) -> None:
        """All tokens of the stream but those at ``places`` (B, n) end here."""
        self.stream = x if self.index is None else self._scattered(x)
        self.index = places if self.index is None else self.index.gather(1, places)
        for state in self.states[layer + 1 :]:
            for part in parts(state):
                if isinstance(part, CacheState):
                    place = part.place(self.length, self.seq_idx)
                    if part.given is None:
                        part.advance(place)
                    position = place.position.expand(len(x), -1).gather(1, places)
                    part.given = Place(position, None if place.ids is None else place.ids.gather(1, places))
                else:
                    part.seen += x.shape[1] - places.shape[1]

    def _scattered(self, x: Tensor) -> Tensor:
        assert self.index is not None
        return self.stream.scatter(1, self.index[..., None].expand_as(x), x.to(self.stream.dtype))


def governed_parts(states: Sequence[State]) -> Iterator[CacheState]:
    """What of the states a policy governs."""
    for state in states:
        yield from (part for part in parts(state) if isinstance(part, CacheState))
