"""Causal attention over a window of recent keys, with a cache that does not grow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.sliding_window_attention import sliding_window_attention
from zoo.layers.mixer import Mixer
from zoo.layers.positions import rotary_embedding
from zoo.layers.state import State


@dataclass
class SlidingWindowState(State):
    """Rings of the newest keys and values (B, window, H, d): step t of all ``length`` is in slot t mod window.

    ``ids`` (B, window) holds packed-sequence ids of these steps while sequences other than the present one may be in
    the window; ``since_ids`` counts the steps since ids were last given.
    """

    key: Tensor
    value: Tensor
    ids: Tensor | None = None
    length: int = 0
    since_ids: int = 0

    def append(self, key: Tensor, value: Tensor, seq_idx: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add (B, T, H, d) keys and values; returns those that the new queries may see and their ids or None.

        The last T returned are the new ones, except that the window of a single step is in no order (without ids).
        """
        window, new = self.key.shape[1], key.shape[1]
        if seq_idx is None and self.since_ids >= window - 1:
            self.ids = None
        if seq_idx is None and self.ids is None and new == 1:
            slot = self.length % window
            self.key[:, slot], self.value[:, slot] = key[:, 0], value[:, 0]
            self.length, self.since_ids = self.length + 1, self.since_ids + 1
            filled = min(self.length, window)
            return self.key[:, :filled], self.value[:, :filled], None
        past = torch.arange(max(0, self.length - window + 1), self.length, device=key.device) % window
        ids = self._all_ids(past, new, seq_idx)
        keys = torch.cat([self.key[:, past], key], dim=1)
        values = torch.cat([self.value[:, past], value], dim=1)
        self.length, self.since_ids = self.length + new, 0 if seq_idx is not None else self.since_ids + new
        self.key, self.value = self._ring(keys), self._ring(values)
        self.ids = None if ids is None else self._ring(ids)
        return keys, values, ids

    def reset(self) -> None:
        """Forget all steps."""
        super().reset()
        self.ids, self.length, self.since_ids = None, 0, 0

    def _all_ids(self, past: Tensor, new: int, seq_idx: Tensor | None) -> Tensor | None:
        """Ids (B, past + T) of the cached and the new steps: without ids a step continues the present sequence."""
        if seq_idx is None and self.ids is None:
            return None
        before = self.seq_idx if self.seq_idx is not None else seq_idx[:, 0]  # type: ignore[index]
        cached = before[:, None].expand(-1, len(past)) if self.ids is None else self.ids[:, past]
        added = before[:, None].expand(-1, new) if seq_idx is None else seq_idx
        self.advance_sequence(seq_idx)
        return torch.cat([cached, added], dim=1)

    def _ring(self, steps: Tensor) -> Tensor:
        """The newest of ``steps`` (B, S, ...), the last of which is step length - 1, each in its slot."""
        window = self.key.shape[1]
        steps = steps[:, max(0, steps.shape[1] - window) :]
        missing = [0, 0] * (steps.dim() - 2) + [window - steps.shape[1], 0]
        return F.pad(steps, missing).roll(self.length % window, dims=1)


class SlidingWindowAttention(Mixer):
    r"""softmax(q k^T / sqrt(d)) v over the present step and the ``window`` - 1 before it, with rotary positions.

    Args:
        dim: model width. num_heads: query heads. window: keys a query sees, itself included. num_kv_heads: key and
            value heads, num_heads when None. rope_base: wavelength base of the rotary embedding. head_dim: d,
            dim / num_heads when None.

    Raises:
        ValueError: when num_heads does not divide dim into heads of even width, num_kv_heads does not divide
            num_heads, or window is below 1.

    Papers: Beltagy et al., "Longformer", arXiv 2004.05150; as a part of BASED: Arora et al., arXiv 2402.18668.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
        num_kv_heads: int | None = None,
        rope_base: float = 10000.0,
        head_dim: int | None = None,
    ):
        super().__init__()
        num_kv_heads = num_kv_heads or num_heads
        odd = dim % (2 * num_heads) if head_dim is None else head_dim % 2
        if odd or num_heads % num_kv_heads or window < 1:
            raise ValueError(
                "num_heads must divide dim into even heads, num_kv_heads must divide num_heads and window must be at "
                f"least 1: got dim {dim}, num_heads {num_heads}, num_kv_heads {num_kv_heads}, window {window}, "
                f"head_dim {head_dim}"
            )
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim or dim // num_heads
        self.window, self.rope_base = window, rope_base
        self.q_proj = nn.Linear(dim, num_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(dim, num_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(dim, num_kv_heads * self.head_dim, bias=False)
        self.out_proj = nn.Linear(num_heads * self.head_dim, dim, bias=False)

    def forward(self, x: Tensor, state: SlidingWindowState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        past = 0 if state is None else state.length
        positions = torch.arange(past, past + x.shape[1], device=x.device)
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, T, H, d)
        q, k = (rotary_embedding(heads, positions, self.rope_base) for heads in (q, k))
        if state is not None:
            k, v, seq_idx = state.append(k, v, seq_idx)
        y = sliding_window_attention(q, k, v, window=self.window, seq_idx=seq_idx)
        return self.out_proj(y.flatten(2))

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> SlidingWindowState:
        """An empty cache of ``window`` steps; the size does not depend on ``max_length``."""
        device, dtype = self.placement(device, dtype)
        shape = (batch_size, self.window, self.num_kv_heads, self.head_dim)
        key, value = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        return SlidingWindowState(key, value)

    def state_size(self, length: int) -> int:
        """Constant in ``length``: one key and one value a step of the window and key-value head."""
        return 2 * self.num_kv_heads * self.head_dim * self.window
