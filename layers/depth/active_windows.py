"""Attention of one head among active tokens, over a window that counts these alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels import sliding_window_attention
from zoo.layers.attention.keys import EMPTY, Keys, Place
from zoo.layers.attention.rotary import Rotary
from zoo.layers.attention.sliding_window import SlidingWindowState
from zoo.layers.attention.state import KeyValueState
from zoo.layers.depth.active import ActiveTokens
from zoo.layers.options import require_at_least
from zoo.layers.ssm.ema import truncated_normal

SQUARED, SOFTMAX = "relu2", "softmax"


class ActiveWindowState(SlidingWindowState):
    """Of each row the newest keys and values of active tokens, wherever these stood."""

    def advance(self, place: Place) -> None:
        """Note that the tokens at ``place`` have passed; the slots never hold successive steps."""
        KeyValueState.advance(self, place)


class CausalWindow(nn.Module):
    """Softmax attention of one head over the active token and the ``window`` active ones before it, at the rotary
    positions that they have in the whole sequence.

    Args:
        dim: channels of queries and keys.
        window: active tokens back.
    """

    def __init__(self, dim: int, window: int):
        super().__init__()
        self.dim, self.size = dim, window + 1
        self.rotary = Rotary(dim, interleaved=True)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, tokens: ActiveTokens, state: ActiveWindowState | None = None
    ) -> Tensor:
        """q and k (B, N, dim), v (B, N, V) of the active tokens, after those in ``state`` -> (B, N, V)."""
        q, k = self.rotary(tokens.position, q[:, :, None], k[:, :, None])  # (B, N, 1, dim)
        keys = Keys(k.transpose(1, 2), v[:, None], tokens.position, tokens.ids)
        fresh = state is None or state.filled == 0
        if state is not None:
            keys = state.write(keys)
        if fresh:  # a place behind the active ones is seen by none of them
            y = sliding_window_attention(q, k, v[:, :, None], window=self.size, seq_idx=tokens.ids)
            return y[:, :, 0]
        y = F.scaled_dot_product_attention(q.transpose(1, 2), keys.key, keys.value, attn_mask=self.mask(keys, tokens))
        return y[:, 0]

    def mask(self, keys: Keys, tokens: ActiveTokens) -> Tensor:
        """(B, 1, N, S): which of all keys, ending with those of ``tokens``, each of these sees, by counting them."""
        held = keys.position != EMPTY
        rank = held.cumsum(1)  # (B, S)
        back = rank[:, -tokens.index.shape[1] :, None] - rank[:, None]  # (B, N, S)
        mask = held[:, None] & (back >= 0) & (back < self.size)
        if keys.ids is not None and tokens.ids is not None:
            mask = mask & (keys.ids[:, None] == tokens.ids[..., None])
        return (mask | ~tokens.valid[..., None])[:, None]


class TwoSidedWindow(nn.Module):
    r"""Attention of one head over ``window`` active tokens on either side, with a learnt bias of each distance.

    .. math:: \phi\big(s \, q_i^\top k_j + b_{\,j - i}\big)

    with a softmax and s = dim^-0.5, or the square of the positive part and s = 1 / (2 window).

    Args:
        dim: channels of queries and keys.
        window: active tokens on either side.
        activation: phi, "softmax" or "relu2".
        max_distance: distances beyond count as it; None: distances count active tokens alone, and are at most the
            window (the authors' table has three windows on either side, of which one is used).
    """

    def __init__(self, dim: int, window: int, activation: str, max_distance: int | None):
        super().__init__()
        if activation not in (SOFTMAX, SQUARED):
            raise ValueError(f"activation must be {SOFTMAX!r} or {SQUARED!r}, got {activation!r}")
        require_at_least(1, max_distance=max_distance)
        self.window, self.activation, self.among = window, activation, max_distance is None
        self.size = 2 * window + 1
        self.reach = 3 * window - 1 if max_distance is None else max_distance
        self.scale = dim**-0.5 if activation == SOFTMAX else 1 / (2 * window)
        self.rel_pos_bias = nn.Parameter(truncated_normal(torch.empty(2 * self.reach + 1)))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, tokens: ActiveTokens, state: None = None) -> Tensor:
        """q and k (B, N, dim), v (B, N, V) of the active tokens -> (B, N, V)."""
        count, w = q.shape[1], self.window
        rank = torch.arange(count, device=q.device).expand(q.shape[:2])
        position = rank if self.among else tokens.position
        valid = tokens.valid
        q, own, rank = (self._blocks(t) for t in (q, position, rank))  # (B, M, w, ...)
        k, v, theirs, other, seen = (self._around(t) for t in (k, v, position, rank.flatten(1)[:, :count], valid))
        distance = other[..., None, :] - rank[..., None]  # (B, M, w, 3 w)
        mask = seen[..., None, :] & (distance.abs() <= w)
        away = (theirs[..., None, :] - own[..., None]).clamp(-self.reach, self.reach) + self.reach
        logits = self.scale * (q @ k.mT) + self.rel_pos_bias[away]
        y = self._weights(logits, mask) @ v
        return y.flatten(1, 2)[:, :count]

    def _weights(self, logits: Tensor, mask: Tensor) -> Tensor:
        if self.activation == SQUARED:
            return F.relu(logits).square().masked_fill(~mask, 0)
        empty = ~mask.any(-1, keepdim=True)  # a softmax over nothing
        return logits.masked_fill(~mask & ~empty, -torch.inf).softmax(-1)

    def _blocks(self, tensor: Tensor, before: int = 0) -> Tensor:
        """(B, N, ...) -> (B, M, window, ...), with zeros at the end, and ``before`` blocks of them at both ends."""
        w, (batch, count) = self.window, tensor.shape[:2]
        missing = -count % w + before * w
        first, last = (tensor.new_zeros(batch, size, *tensor.shape[2:]) for size in (before * w, missing))
        return torch.cat([first, tensor, last], 1).unflatten(1, (-1, w))

    def _around(self, tensor: Tensor) -> Tensor:
        """(B, N, ...) -> (B, M, 3 window, ...): of each block its tokens and those of its neighbours."""
        blocks = self._blocks(tensor, before=1)
        return torch.cat([blocks[:, :-2], blocks[:, 1:-1], blocks[:, 2:]], 2)
