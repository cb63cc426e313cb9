"""Causal attention among the tokens that a layer computes, with a cache of these alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo.layers.attention.causal import CausalAttention
from zoo.layers.attention.keys import EMPTY, Keys
from zoo.layers.attention.state import KeyValueState
from zoo.layers.depth.active import ActiveTokens


def refreshed(shared: Keys, own: Keys) -> Keys:
    """``shared`` keys, in which those of a token that also has ``own`` ones give way to these; (B, S + N) in all."""
    places = own.position.sort(dim=1).values
    nearest = torch.searchsorted(places, shared.position.contiguous()).clamp(max=places.shape[1] - 1)
    stale = places.gather(1, nearest) == shared.position
    shared = shared._replace(position=shared.position.masked_fill(stale, EMPTY))
    ids = None if shared.ids is None or own.ids is None else torch.cat([shared.ids, own.ids], dim=1)
    key, value = (torch.cat(pair, dim=2) for pair in zip(shared[:2], own[:2], strict=True))
    return Keys(key, value, torch.cat([shared.position, own.position], dim=1), ids)


class ActiveAttention(CausalAttention):
    r"""softmax(q k^T / sqrt(d)) v over the present and past tokens that are active, at their positions in the sequence.

    ``forward`` is that of ``CausalAttention``, all tokens being active. A layer that computes some of them calls
    ``among``, or its two halves: ``write`` makes the keys and values of the active tokens and caches them (what is not
    active has none here), ``read`` attends from the active tokens to any keys, so also to those that another layer
    wrote.

    Args:
        dim, num_heads, num_kv_heads, rope_base: of ``CausalAttention``.
        share: of the tokens that are expected to be active, which ``init_state`` reserves memory for and ``state_size``
            counts; None where that is not known: memory is taken as tokens become active.

    Papers: Bae et al., "Mixture-of-Recursions", arXiv 2507.10524, section 2.2; Raposo et al., "Mixture-of-Depths",
    arXiv 2404.02258.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        rope_base: float | None = 10000.0,
        share: float | None = None,
    ):
        super().__init__(dim, num_heads, num_kv_heads, rope_base)
        self.share = share

    def forward(self, x: Tensor, state: KeyValueState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        return self.among(x, ActiveTokens.of(x, [] if state is None else [state], seq_idx), state)

    def among(self, x: Tensor, tokens: ActiveTokens, state: KeyValueState | None = None) -> Tensor:
        """The active tokens x (B, N, dim) attend to each other and to those in ``state``, which keeps them."""
        if state is None:
            return self.read(x, tokens, self.write(x, tokens))
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.rotated(tokens.position, q, k)  # (B, N, H, d)
        y = state.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), tokens, self, noted=True)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def write(self, x: Tensor, tokens: ActiveTokens, state: KeyValueState | None = None) -> Keys:
        """Keys of the active tokens x (B, N, dim), after those in ``state``, which keeps them."""
        k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.k_proj, self.v_proj))  # (B, N, H, d)
        (k,) = self.rotated(tokens.position, k)
        keys = Keys(k.transpose(1, 2), v.transpose(1, 2), tokens.position, tokens.ids)
        return keys if state is None else state.write(keys)

    def read(self, x: Tensor, tokens: ActiveTokens, keys: Keys) -> Tensor:
        """The active tokens x (B, N, dim) attend to ``keys`` -> (B, N, dim)."""
        (q,) = self.rotated(tokens.position, self.q_proj(x).unflatten(-1, (-1, self.head_dim)))
        y = self.attend(q.transpose(1, 2), keys.key, keys.value, keys.mask(tokens))
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> KeyValueState:
        """An empty cache of at most ``max_length`` tokens, with room for the share that is expected of them."""
        expected = min(16, max_length or 16) if self.share is None else math.ceil(self.share * (max_length or 16))
        key, value = self.empty(batch_size, expected, device, dtype)
        return KeyValueState(key, value, max_length=max_length).with_positions()

    def state_size(self, length: int) -> int:
        """For the expected share of ``length`` tokens their position, one key and one value a key-value head."""
        return super().state_size(math.ceil((self.share or 1.0) * length)) + math.ceil((self.share or 1.0) * length)
