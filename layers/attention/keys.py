"""Keys, values, and the one place that says which of them a query sees."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

EMPTY = 2**31 - 1  # the position of no token: later than all, so that no query sees it


class Placed(Protocol):
    """Tokens that know their position (T,) or (B, T), ``EMPTY`` at padding, and their sequence ids (B, T) or None."""

    @property
    def position(self) -> Tensor: ...
    @property
    def ids(self) -> Tensor | None: ...


class Place(NamedTuple):
    """Where the new tokens of a call stand; ``named``: the ids were given in this call."""

    position: Tensor
    ids: Tensor | None = None
    named: bool = False

    @classmethod
    def of(cls, x: Tensor, state: Remembering | None, seq_idx: Tensor | None) -> Place:
        """Of the tokens x (B, T, ...), which come after those of the state."""
        if state is not None:
            return state.place(x.shape[1], seq_idx)
        return cls(torch.arange(x.shape[1], device=x.device), seq_idx, seq_idx is not None)


class Attended(NamedTuple):
    """Keys and values (B, H, S, d), and the boolean mask, (T, S) or (B, 1, T, S), of those that each query may see.

    None as a mask: the keys of the T queries alone, each to see those up to its own; or one query, to see all.
    """

    key: Tensor
    value: Tensor
    mask: Tensor | None


class Remembering(Protocol):
    """A key-value state: it owns what attention sees."""

    def place(self, length: int, seq_idx: Tensor | None = None) -> Place: ...


class Keys(NamedTuple):
    """Keys and values (B, H, S, d) at positions (S,) or (B, S), with the sequence ids (B, S) of their tokens."""

    key: Tensor
    value: Tensor
    position: Tensor
    ids: Tensor | None = None

    def mask(self, tokens: Placed, window: int | None = None) -> Tensor | None:
        """Which keys each of ``tokens`` sees: no later one, none of another sequence, none ``window`` or more back.

        What stands for no token sees everything, lest a softmax be over nothing. None: see ``Attended``.
        """
        key, query = self.position[..., None, :], tokens.position[..., :, None]
        size = self.position.shape[-1]
        if self.ids is None and (window is None or (not isinstance(size, torch.SymInt) and size <= window)):
            one = tokens.position.shape[-1] == 1 and self.position.dim() == 1
            if one or self.position is tokens.position:
                return None
        mask = key <= query
        if window is not None:
            mask = mask & (query - key < window)
        if self.ids is not None and tokens.ids is not None:
            mask = mask & (self.ids[:, None, :] == tokens.ids[:, :, None])
        if tokens.position.dim() == 2:
            mask = mask | (query == EMPTY)
        return mask if mask.dim() == 2 else mask[:, None]


def is_causal(q: Tensor, k: Tensor, mask: Tensor | None) -> bool:
    """Whether queries and keys (B, H, T or S, d) whose mask is None are the same tokens, to be masked causally."""
    if mask is None and 1 < q.shape[2] == k.shape[2]:  # noqa: SIM103 - a comparison of traced sizes is no bool
        return True
    return False


def grouped(q: Tensor, heads: int) -> Tensor:
    """Queries (B, H, T, d) as rows of the key-value head that they share, (B, heads, H / heads T, d): a product with
    its keys then copies none of them."""
    return q.unflatten(1, (heads, -1)).flatten(2, 3)


def masked(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Logits (B, G, H / G, T, S) with -inf where a mask as in ``Attended``, or (B, H, T, S), hides a key."""
    queries, keys = logits.shape[-2:]
    if mask is None:
        if queries == 1:
            return logits
        mask = torch.ones(queries, keys, dtype=torch.bool, device=logits.device).tril()
    elif mask.dim() == 4:
        mask = mask[:, None] if mask.shape[1] == 1 else mask.unflatten(1, logits.shape[1:3])
    return logits.masked_fill(~mask, -torch.inf)


def attended(key: Tensor, value: Tensor, place: Place) -> Attended:
    """What queries at ``place`` attend to, given their own keys and values (B, H, T, d) and no others."""
    return Attended(key, value, Keys(key, value, place.position, place.ids).mask(place))
