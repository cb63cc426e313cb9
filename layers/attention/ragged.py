"""Causal attention among some of the tokens, with a cache in which each row holds as many as it was given."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.layers.attention.causal import CausalAttention
from zoo.layers.attention.state import attention_mask
from zoo.layers.state import State


@dataclass
class RaggedState(State):
    """Keys and values (B, capacity, H, d) of which row b has the first ``count[b]`` filled, count (B,) int64.

    ``positions`` (B, capacity) says which of all ``length`` tokens each belongs to; ``ids`` (B, capacity) holds its
    packed-sequence id once ids were given. The capacity grows by doubling.
    """

    key: Tensor
    value: Tensor
    positions: Tensor
    count: Tensor
    ids: Tensor | None = None
    length: int = 0

    def advance(self, steps: int, seq_idx: Tensor | None) -> tuple[int, Tensor | None]:
        """Note that ``steps`` tokens passed; returns how many came before and the ids (B, steps) of these, or None.

        Without ids the tokens continue the present sequence.
        """
        past, self.length = self.length, self.length + steps
        if seq_idx is None:
            return past, None if self.seq_idx is None else self.seq_idx[:, None].expand(-1, steps)
        if self.ids is None:  # what came before is one sequence, continued by the first token
            self.ids = seq_idx[:, :1].repeat(1, self.key.shape[1])
        self.seq_idx = seq_idx[:, -1]
        return past, seq_idx

    def append(
        self, key: Tensor, value: Tensor, positions: Tensor, valid: Tensor | None, ids: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Add (B, K, H, d) keys and values at ``positions`` (B, K), in each row those that are ``valid`` (B, K), which
        come first; returns all keys, all values and the mask (B, 1, K, all) of those a new query may see."""
        new = key.shape[1]
        slots = self.count[:, None] + torch.arange(new, device=key.device)
        end = int(self.count.amax()) + new
        self._reserve(end)
        rows = torch.arange(len(key), device=key.device)[:, None]
        self.key[rows, slots], self.value[rows, slots], self.positions[rows, slots] = key, value, positions
        mask = torch.arange(end, device=key.device) <= slots[:, :, None]
        if self.ids is not None and ids is not None:
            self.ids[rows, slots] = ids
            mask = mask & (self.ids[:, None, :end] == ids[:, :, None])
        self.count = self.count + (new if valid is None else valid.sum(1))
        return self.key[:, :end], self.value[:, :end], mask[:, None]

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self.ids, self.length = None, 0

    def crop(self, length: int) -> None:
        """Keep what is of the first ``length`` tokens (negative: drop that many)."""
        self.length = max(0, min(self.length, length if length >= 0 else self.length + length))
        filled = torch.arange(self.key.shape[1], device=self.key.device) < self.count[:, None]
        self.count = (filled & (self.positions < self.length)).sum(1)
        if self.length == 0:
            self.ids = self.seq_idx = None

    def _reserve(self, length: int) -> None:
        capacity = self.key.shape[1]
        if length > capacity:
            extra = max(length, 2 * capacity) - capacity
            self.key, self.value = (F.pad(t, (0, 0, 0, 0, 0, extra)) for t in (self.key, self.value))
            self.positions = F.pad(self.positions, (0, extra))
            self.ids = None if self.ids is None else F.pad(self.ids, (0, extra))


class RaggedAttention(CausalAttention):
    """``CausalAttention`` among the tokens it is given, each at its own position; the others have no key and no query.

    Args:
        dim, num_heads, num_kv_heads, rope_base: of ``CausalAttention``. share: of a sequence's tokens that are expected
            here, which ``init_state`` reserves memory for and ``state_size`` counts.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        rope_base: float = 10000.0,
        share: float = 1.0,
    ):
        super().__init__(dim, num_heads, num_kv_heads, rope_base)
        self.share = share

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Tensor,
        state: RaggedState | None = None,
        *,
        seq_idx: Tensor | None = None,
        positions: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """x (B, K, dim) -> (B, K, dim).

        Args:
            positions: (B, K) ascending places in the sequence, of tokens that the caller has given to
                ``state.advance``; None: x is all tokens. valid: (B, K) bool, the tokens to remember, which come first
                in each row. seq_idx: (B, K) ids.
        """
        length = x.shape[1]
        if positions is None:
            past, seq_idx = (0, seq_idx) if state is None else state.advance(length, seq_idx)
            positions = torch.arange(past, past + length, device=x.device).expand(len(x), -1)
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, K, H, d)
        q, k = self.rotated(q, positions), self.rotated(k, positions)
        if state is not None:
            k, v, mask = state.append(k, v, positions, valid, seq_idx)
        else:
            mask = None if seq_idx is None else attention_mask(length, length, seq_idx, seq_idx, x.device)
        y = F.scaled_dot_product_attention(
            *(heads.transpose(1, 2) for heads in (q, k, v)), attn_mask=mask, is_causal=mask is None, scale=self.scale,
            enable_gqa=self.num_heads != self.num_kv_heads,
        )  # fmt: skip
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> RaggedState:  # pyright: ignore
        """An empty cache with room for the expected share of ``max_length`` tokens; it grows."""
        (device, dtype), room = self.placement(device, dtype), self._expected(max_length or 16)
        shape = (batch_size, room, self.num_kv_heads, self.head_dim)
        key, value = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        positions, count = (
            torch.zeros(size, device=device, dtype=torch.int64) for size in ((batch_size, room), batch_size)
        )
        return RaggedState(key, value, positions, count)

    def state_size(self, length: int) -> int:
        """For the expected share of ``length`` tokens, a key and a value a key-value head and a position; a count."""
        return self._expected(length) * (2 * self.num_kv_heads * self.head_dim + 1) + 1

    def _expected(self, length: int) -> int:
        return math.ceil(self.share * length)
