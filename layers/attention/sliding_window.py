"""Causal attention over a window of recent keys, with a cache that does not grow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.kernels.sliding_window_attention import sliding_window_attention
from zoo.layers.attention.causal import CausalAttention
from zoo.layers.attention.keys import EMPTY, Keys, Place
from zoo.layers.attention.sinks import sink_first
from zoo.layers.attention.state import FILLERS, KeyValueState
from zoo.layers.cache.buffer import gathered, widened
from zoo.layers.state import State, is_sized


@dataclass
class SlidingWindowState(KeyValueState):
    """Each row's newest ``window`` keys and values; as many as there are slots when None.

    The capacity grows by doubling up to the window. ``unnamed`` counts the steps since ids were given: when they fill
    the window, ids and positions are dropped.
    """

    window: int | None = None
    unnamed: int = 0
    crop = State.crop

    def advance(self, place: Place) -> None:
        """Note that the tokens at ``place`` have passed."""
        super().advance(place)
        self.unnamed = 0 if place.named else self.unnamed + place.position.shape[-1]

    def reset(self) -> None:
        """Forget all tokens, keep the memory."""
        super().reset()
        self.unnamed = 0

    def make_room(self, count: int) -> None:
        """Nothing to do: ``write`` drops what leaves the window."""

    def write(self, new: Keys, **more: Tensor) -> Keys:
        """Remember keys of tokens that have been noted; returns these and all that were held before."""
        capacity, start, total = self.key.shape[2], self.filled, self.filled + new.key.shape[2]
        window = self.window or capacity
        every, order = {}, None
        for name, dim in self.slots.items():
            held = getattr(self, name)
            if held is not None:
                added = new.position.expand(len(held), -1) if name == "position" else getattr(new, name)
                every[name] = torch.cat([held.narrow(dim, 0, start), added.to(held.dtype)], dim)
        if self.position is not None:  # in each row the slots without a token come first
            order = (every["position"] != EMPTY).to(torch.uint8).argsort(dim=1, stable=True)
        self.filled = min(total, window)
        capacity = capacity if self.filled <= capacity else min(window, max(self.filled, 2 * capacity))
        for name, dim in self.slots.items():
            if name in every:
                ordered = every[name] if order is None else gathered(every[name], order, dim)
                newest = ordered.narrow(dim, total - self.filled, self.filled)
                setattr(self, name, widened(newest, capacity, dim, FILLERS.get(name, 0)))
        if self.unnamed >= window:
            self.position = self.ids = None
        every.setdefault("position", torch.arange(self.seen - total, self.seen, device=new.key.device))
        return Keys(**every) if start else new


class SlidingWindowAttention(CausalAttention):
    r"""softmax(q k^T / sqrt(d)) v over the present step and the ``window`` - 1 before it.

    Args:
        dim: model width.
        num_heads: query heads.
        window: keys a query sees, itself included.
        num_kv_heads: key and value heads, num_heads when None.
        rope_base: wavelength base of the rotary embedding, None for no position information.
        head_dim: d, dim / num_heads when None.
        scale: factor of the logits, d^-0.5 when None.
        options: ``rotary`` and what follows it, of ``CausalAttention``.

    Raises:
        ValueError: for a window below 1, and see ``CausalAttention``.

    Papers: Beltagy et al., "Longformer", arXiv 2004.05150; as a part of BASED: Arora et al., arXiv 2402.18668.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
        num_kv_heads: int | None = None,
        rope_base: float | None = 10000.0,
        head_dim: int | None = None,
        scale: float | None = None,
        **options: Any,
    ):
        super().__init__(dim, num_heads, num_kv_heads, rope_base, head_dim, scale, **options)
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.window = window

    def mix(self, q: Tensor, k: Tensor, v: Tensor, place: Place, state: KeyValueState | None) -> Tensor:
        """By the kernel, which counts steps, where each row's steps are its positions; elsewhere by a mask, and so are
        bounded logits, and sinks of packed sequences or of a single query. What is no cache attends itself."""
        if state is not None and not isinstance(state, KeyValueState):
            return state.attend(q, k, v, place, self)
        keys = Keys(k, v, place.position, place.ids)
        if state is not None:
            keys = state.remember(keys, place)
        steps = keys.position.dim() == 1 or keys.position is place.position
        sinks = self.sinks is not None and (keys.ids is not None or q.shape[2] == 1)
        anyhow = isinstance(keys.key.shape[2], torch.SymInt) and q.shape[2] == 1  # in a program for any past
        if steps and self.softcap is None and not sinks and not anyhow:
            return self.attend_steps(q, keys)
        if steps:
            place = place._replace(position=keys.position[..., -q.shape[2] :])
        return self.attend_masked(q, keys, place, steps)

    def attend_steps(self, q: Tensor, keys: Keys) -> Tensor:
        """q (B, H, T, d) over the newest keys, where a step is a position -> (B, H, T, d)."""
        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        heads, sinks = (q, keys.key, keys.value), self.sinks
        if sinks is not None:
            heads = sink_first(*heads, scale, sinks)
        y = sliding_window_attention(
            *(t.transpose(1, 2) for t in heads), window=self.window, sinks=int(sinks is not None), scale=scale,
            seq_idx=keys.ids,
        ).transpose(1, 2)  # fmt: skip
        return y if sinks is None else y[..., :-1]

    def attend_masked(self, q: Tensor, keys: Keys, place: Place, steps: bool) -> Tensor:
        """q (B, H, T, d) of the newest tokens by a mask -> (B, H, T, d); ``steps``: of keys one after the other, of
        which a stretch of as many queries as the window has reads those near it."""
        length, size = q.shape[2], max(self.window, 64)
        if not steps or not is_sized(q) or length <= size:
            return self.attend(q, keys.key, keys.value, keys.mask(place, self.window))
        outputs, past = [], keys.key.shape[2] - length
        for start in range(0, length, size):
            tokens = slice(start, start + size)
            near = slice(max(0, past + start - self.window + 1), past + start + size)
            ids = None if keys.ids is None else keys.ids[:, near]
            part = Keys(keys.key[:, :, near], keys.value[:, :, near], keys.position[..., near], ids)
            there = Place(place.position[..., tokens], None if place.ids is None else place.ids[:, tokens])
            outputs.append(self.attend(q[:, :, tokens], part.key, part.value, part.mask(there, self.window)))
        return torch.cat(outputs, 2)

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> SlidingWindowState:
        """An empty cache of ``window`` steps, or of ``max_length`` where that is less."""
        key, value = self.empty(batch_size, min(self.window, max_length or self.window), device, dtype)
        return SlidingWindowState(key, value, window=self.window)

    def state_size(self, length: int) -> int:
        """Grows with ``length`` up to the window: one key and one value a step and key-value head."""
        return super().state_size(min(length, self.window))
