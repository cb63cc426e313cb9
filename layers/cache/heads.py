"""Key-value heads of one layer under policies of their own, so of different length."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.attention.keys import Place, Placed
from zoo.layers.cache.call import Attention
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.state import CacheState
from zoo.layers.state import State
from zoo.layers.states import JointState


class HeadsState(JointState):
    """Groups of key-value heads, each with a state of its own.

    Args:
        parts: the states.
        heads: of each, the numbers of its key-value heads.
    """

    def __init__(self, parts: Sequence[State], heads: Sequence[Tensor]):
        super().__init__(tuple(parts))
        self.heads = tuple(heads)

    @classmethod
    def of_roles(cls, policies: Sequence[Policy], key: Tensor, value: Tensor, **place: Any) -> HeadsState:
        """Without tokens: key-value head i of key and value (B, H, 0, d) under ``policies[i]``."""
        groups = {policy: [i for i, one in enumerate(policies) if one == policy] for policy in policies}
        heads = [torch.tensor(group, device=key.device) for group in groups.values()]
        parts = [
            policy.build(key[:, group], value[:, group], **place) for policy, group in zip(groups, heads, strict=True)
        ]
        return cls(parts, heads)

    def of(self, states: Iterable[State]) -> HeadsState:
        """The same heads with other states."""
        return HeadsState(tuple(states), self.heads)

    def crop(self, length: int) -> None:
        """Crop every part."""
        for part in self.parts:
            part.crop(length)

    @property
    def filled(self) -> int:
        """Slots of the longest heads."""
        return max(part.filled for part in self._parts)

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self._parts[0].dtype

    @property
    def steps_alike(self) -> bool:
        """See ``CacheState``."""
        return self._parts[0].steps_alike

    @property
    def _parts(self) -> tuple[CacheState, ...]:
        return self.parts  # type: ignore[return-value]

    def place(self, length: int, seq_idx: Tensor | None = None) -> Place:
        """Where the next ``length`` tokens stand."""
        return self._parts[0].place(length, seq_idx)

    def advance(self, place: Place) -> None:
        """Note that the tokens at ``place`` have passed."""
        for part in self._parts:
            part.advance(place)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, place: Placed, attention: Attention, *, noted: bool = False
    ) -> Tensor:
        """See ``CacheState.attend``: each group on its own."""
        groups = q.unflatten(1, (k.shape[1], -1))  # (B, G, H / G, T, d)
        found = []
        for part, heads in zip(self._parts, self.heads, strict=True):
            own = SomeHeads(attention, heads)
            found.append(part.attend(groups[:, heads].flatten(1, 2), k[:, heads], v[:, heads], place, own, noted=noted))
        y = torch.cat([one.unflatten(1, (len(heads), -1)) for one, heads in zip(found, self.heads, strict=True)], dim=1)
        return y[:, torch.cat(self.heads).argsort()].flatten(1, 2)


class SomeHeads:
    """Attention as the queries of some of its key-value heads have it, and the reference to it that states keep."""

    def __init__(self, attention: Attention, heads: Tensor):
        self.whole: Any = weakref.ref(attention) if isinstance(attention, nn.Module) else attention
        self.heads = heads

    def __call__(self) -> SomeHeads:
        return self

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """See ``Attention``, as all that follow."""
        return self.whole().attend(q, k, v, mask, **self.which())

    def logits(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.whole().logits(q, k, v)

    def bounded(self, dots: Tensor) -> Tensor:
        return self.whole().bounded(dots)

    def weights(self, logits: Tensor) -> Tensor:
        return self.whole().weights(logits, **self.which())

    def which(self) -> dict[str, Tensor]:
        """Whose sinks take part, where there are some."""
        return {} if getattr(self.whole(), "sinks", None) is None else {"heads": self.heads}

    def mixed(self, weights: Tensor, v: Tensor) -> Tensor:
        return self.whole().mixed(weights, v)

    def turned(self, heads: Tensor, by: Tensor) -> Tensor:
        return self.whole().turned(heads, by)
