"""Causal attention among the tokens that are still active, with a cache of these alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.layers.attention.causal import CausalAttention
from zoo.layers.depth.active import EMPTY, ActiveTokens, is_traced
from zoo.layers.state import State


class Keys(NamedTuple):
    """Keys and values (B, H, S, d) with the positions (B, S) and sequence ids (B, S) or None of their tokens."""

    key: Tensor
    value: Tensor
    position: Tensor
    ids: Tensor | None


@dataclass
class ActiveKeyValueState(State):
    """Keys and values (B, H, capacity, d) of the active tokens: each row fills its first places, in order of time.

    ``position`` (B, capacity) is the token's position, ``EMPTY`` at a free place; ``ids`` (B, capacity) its
    packed-sequence id once ids were given. ``length`` counts all tokens seen, ``filled`` bounds the places any row has
    taken. Memory is taken as tokens become active, by doubling, up to ``max_length`` places.
    """

    key: Tensor
    value: Tensor
    position: Tensor
    ids: Tensor | None = None
    length: int = 0
    filled: int = 0
    max_length: int | None = None

    def advance(self, new: int, seq_idx: Tensor | None) -> tuple[int, Tensor | None]:
        """Note ``new`` tokens, active or not; returns the position of the first and the ids (B, new) of all or None.

        Raises:
            ValueError: when the tokens do not fit into ``max_length``.
        """
        past, end = self.length, self.length + new
        if self.max_length is not None and end > self.max_length:
            raise ValueError(
                f"the state holds at most {self.max_length} tokens, {past} are in it and {new} more were given: "
                "call init_state with a larger max_length, or without one"
            )
        if seq_idx is None and self.seq_idx is not None:
            seq_idx = self.seq_idx[:, None].expand(-1, new)
        elif seq_idx is not None and self.ids is None:  # what came before is one sequence, continued by the first token
            self.ids = seq_idx[:, :1].repeat(1, self.key.shape[2])
        self.advance_sequence(seq_idx)
        self.length = end
        return past, seq_idx

    def append(self, new: Keys) -> Keys:
        """Add the keys and values of N active tokens a row; returns all that are filled."""
        count, width = (self.position != EMPTY).sum(1, keepdim=True), new.key.shape[2]
        first = self.filled == 0
        if self.filled + width > self.key.shape[2] and not is_traced(count):
            self.filled = int(count.max())  # the bound is made exact only before growing, as it waits for the device
        self.filled += width
        self._reserve(self.filled)
        places = count + torch.arange(width, device=count.device)  # (B, N); the empty ones come last and stay free
        wide = places[:, None, :, None].expand_as(new.key)
        self.key.scatter_(2, wide, new.key.to(self.key.dtype))
        self.value.scatter_(2, wide, new.value.to(self.value.dtype))
        self.position.scatter_(1, places, new.position)
        if self.ids is not None and new.ids is not None:
            self.ids.scatter_(1, places, new.ids.to(self.ids.dtype))
        if first:
            return new
        ids = None if self.ids is None else self.ids[:, : self.filled]
        return Keys(
            self.key[:, :, : self.filled], self.value[:, :, : self.filled], self.position[:, : self.filled], ids
        )

    def reset(self) -> None:
        """Forget all tokens, keep the memory."""
        self.position = torch.full_like(self.position, EMPTY)
        self.length, self.filled, self.ids, self.seq_idx = 0, 0, None, None

    def crop(self, length: int) -> None:
        """Keep what belongs to the first ``length`` tokens (negative: drop that many)."""
        self.length = max(0, min(self.length, length if length >= 0 else self.length + length))
        self.filled = min(self.filled, self.length)
        self.position = self.position.masked_fill(self.position >= self.length, EMPTY)
        if self.length == 0:
            self.ids = self.seq_idx = None
        elif self.ids is not None:
            newest = (self.position != EMPTY).sum(1, keepdim=True) - 1
            self.seq_idx = self.ids.gather(1, newest.clamp(min=0))[:, 0]

    def _reserve(self, places: int) -> None:
        capacity = self.key.shape[2]
        if places > capacity:
            extra = min(max(places, 2 * capacity), self.max_length or 2 * places) - capacity
            self.key, self.value = (F.pad(t, (0, 0, 0, extra)) for t in (self.key, self.value))
            self.position = F.pad(self.position, (0, extra), value=EMPTY)
            if self.ids is not None:
                self.ids = F.pad(self.ids, (0, extra))


class RecursionAttention(CausalAttention):
    r"""softmax(q k^T / sqrt(d)) v over the present and past tokens that are active, at their positions in the sequence.

    ``forward`` is that of ``CausalAttention``, all tokens being active. A recursion calls its two halves: ``write``
    makes the keys and values of the active tokens and caches them (recursion-wise caching: what exited has none here),
    ``read`` attends from the active tokens to any keys, so also to those another recursion wrote (sharing).

    Args: as of ``CausalAttention``.

    Paper: Bae et al., "Mixture-of-Recursions", arXiv 2507.10524, section 2.2.
    """

    def forward(self, x: Tensor, state: ActiveKeyValueState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        past, ids = (0, seq_idx) if state is None else state.advance(x.shape[1], seq_idx)
        tokens = ActiveTokens.all_of(x, past, ids)
        return self.read(x, tokens, self.write(x, tokens, state))

    def write(self, x: Tensor, tokens: ActiveTokens, state: ActiveKeyValueState | None = None) -> Keys:
        """Keys of the active tokens x (B, N, dim), after those in ``state``, which keeps them."""
        k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.k_proj, self.v_proj))  # (B, N, H, d)
        k = self.rotated(k, tokens.position)
        keys = Keys(k.transpose(1, 2), v.transpose(1, 2), tokens.position, tokens.ids)
        return keys if state is None else state.append(keys)

    def read(self, x: Tensor, tokens: ActiveTokens, keys: Keys) -> Tensor:
        """The active tokens x (B, N, dim) attend to ``keys`` -> (B, N, dim)."""
        q = self.rotated(self.q_proj(x).unflatten(-1, (-1, self.head_dim)), tokens.position)
        own = keys.position is tokens.position and keys.ids is None  # the same tokens: in order, the empty ones last
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), keys.key, keys.value, attn_mask=None if own else tokens.visible(keys.position, keys.ids),
            is_causal=own, scale=self.scale, enable_gqa=self.num_heads != self.num_kv_heads,
        )  # fmt: skip
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> ActiveKeyValueState:
        """An empty cache, which takes memory as tokens become active, of at most ``max_length`` tokens."""
        (device, dtype), capacity = self.placement(device, dtype), min(16, max_length or 16)
        shape = (batch_size, self.num_kv_heads, capacity, self.head_dim)
        key, value = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        position = torch.full((batch_size, capacity), EMPTY, device=device)
        return ActiveKeyValueState(key, value, position, max_length=max_length)

    def state_size(self, length: int) -> int:
        """Grows with the ``length`` active tokens: their position, one key and one value a key-value head."""
        return (2 * self.num_kv_heads * self.head_dim + 1) * length
