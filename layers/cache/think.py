"""Keys without the channels that no query reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from zoo.layers.attention.keys import grouped, masked
from zoo.layers.cache.call import Call
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.state import CacheState
from zoo.layers.options import require_at_least
from zoo.layers.state import State


@dataclass
class ThinState(CacheState):
    """Keys of fewer channels, those in ``notes`` "channels" (B, H, d) that come first.

    The others follow, of the last slots alone: ``notes`` "rest" (B, H, R, the rest of d).
    """

    @property
    def key(self) -> Tensor:
        """Keys (B, H, filled, d), 0 in the channels that they have lost."""
        kept, rest = super().key, self.notes.get("rest")
        if rest is None or self.exact is not None:
            return kept
        lost = rest.new_zeros(*rest.shape[:2], self.filled - rest.shape[2], rest.shape[3])
        back = self.notes["channels"].argsort(-1)[:, :, None]
        return torch.cat([kept, torch.cat([lost, rest], 2).to(kept.dtype)], -1).take_along_dim(back, -1)

    @property
    def thin(self) -> Tensor:
        """Keys (B, H, filled, channels that all have)."""
        return super().key

    def append(self, key: Tensor, value: Tensor, position: Tensor) -> None:
        """See ``Slots``."""
        if "rest" in self.notes:
            key = key.take_along_dim(self.notes["channels"][:, :, None], -1)
            key, rest = key.split((key.shape[-1] - self.notes["rest"].shape[-1], self.notes["rest"].shape[-1]), -1)
            self.notes["rest"] = torch.cat([self.notes["rest"], rest.to(self.notes["rest"].dtype)], 2)
        super().append(key, value, position)

    def crop(self, length: int) -> None:
        """See ``CacheState``."""
        rest, before = self.notes.get("rest"), self.filled
        super().crop(length)
        if rest is not None and self.seen:
            self.notes["rest"] = rest[:, :, : rest.shape[2] - (before - self.filled)]

    def renew_keys(self, key: Tensor) -> None:
        """Other keys (B, H, filled, any width) in place of those held."""
        for name in [name for name in self.data if name.partition(".")[0] == "key"]:
            del self.data[name]
        capacity = self.data["position"].shape[2]
        self.data |= {"key" + ending: part for ending, part in self.policy.store.encode(key).items()}
        self.reserve(capacity)


@dataclass(frozen=True)
class ThinK(Policy):
    r"""Drops of each head the channels of its keys that add least to the logits, once a prompt has been read.

    .. math:: s_i = \mathrm{mean}_{window}(q_i^2) \; \mathrm{mean}_t(k_{t,i}^2)

    q over the query heads of a key-value head too. The newest tokens and those that are generated keep all channels.
    The ``ratio`` of the channels that goes is the share of the keys' memory, half of it that of the cache's.

    Args:
        ratio: channels that are dropped.
        recent: newest tokens of a prompt that keep all.
        window: queries that count.
        tokens: what evicts tokens of the prompt first, such as ``SnapKV()``; None for nothing.

    Raises:
        ValueError: for a ratio outside [0, 1), or ``tokens`` that evict while decoding or see a part.

    Paper: Xu et al., "ThinK: Thinner Key Cache by Query-Driven Pruning", arXiv 2407.21018.
    """

    channels: ClassVar[bool] = True
    paper: ClassVar[str] = "2407.21018"

    ratio: float = 0.4
    recent: int = 32
    window: int = 32
    tokens: Policy | None = None

    def __post_init__(self):
        require_at_least(0, recent=self.recent)
        require_at_least(1, window=self.window)
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio, the share of channels that is dropped, must be in [0, 1), got {self.ratio}")
        if self.tokens is not None:
            hooks = ("attend", "after_step", "after_layers", "after_layer", "build")
            if any(getattr(type(self.tokens), hook) is not getattr(Policy, hook) for hook in hooks):
                raise ValueError(
                    f"tokens must be evicted at the end of a prompt alone, got {type(self.tokens).__name__}: "
                    "take SnapKV, or None"
                )

    @property
    def per_head(self) -> bool:  # type: ignore[override]
        """As the policy of the tokens."""
        return self.tokens is not None and self.tokens.per_head

    def build(self, key: Tensor, value: Tensor, **place: Any) -> State:
        """See ``Policy``."""
        return ThinState.empty(self, key, value, **place)

    def start(self, state: CacheState) -> None:
        """See ``Policy``."""
        if self.tokens is not None:
            self.tokens.start(state)

    def attend(self, state: CacheState, call: Call) -> Tensor:
        """By the channels that there are."""
        assert isinstance(state, ThinState)
        if "rest" not in state.notes:
            return state.attend_all(call)
        thin, rest = state.thin, state.notes["rest"]
        q = grouped(call.q, thin.shape[1]).take_along_dim(state.notes["channels"][:, :, None], -1)
        dots = q[..., : thin.shape[-1]] @ thin.mT
        dots[..., state.filled - rest.shape[2] :] += q[..., thin.shape[-1] :] @ rest.mT
        logits = call.attention.bounded(dots.unflatten(2, (-1, call.length)))
        return call.attention.mixed(call.attention.weights(masked(logits, state.mask(call))), state.value)

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """Evict tokens, then drop channels."""
        assert isinstance(state, ThinState)
        if "rest" in state.notes:
            state.renew_keys(state.key)
            del state.notes["rest"]
        if self.tokens is not None:
            self.tokens.after_prefill(state, call)
        if state.filled > self.recent and int(self.ratio * state.key.shape[-1]):
            self.prune(state, call)

    def prune(self, state: ThinState, call: Call) -> None:
        """All but the last slots lose channels, the same in every call."""
        key = state.key
        lost = int(self.ratio * key.shape[-1])
        if "channels" not in state.notes:
            order = self.score(state, call).argsort(dim=-1, descending=True, stable=True)
            kept, dropped = order[..., : key.shape[-1] - lost], order[..., key.shape[-1] - lost :]
            state.notes["channels"] = torch.cat([kept.sort(-1).values, dropped.sort(-1).values], -1)
        key = key.take_along_dim(state.notes["channels"][:, :, None], -1)
        state.notes["rest"] = key[:, :, max(0, state.filled - self.recent) :, key.shape[-1] - lost :].clone()
        state.renew_keys(key[..., : key.shape[-1] - lost])

    def score(self, state: CacheState, call: Call) -> Tensor:
        """Of the channels, (B, G, d)."""
        newest, real = call.newest(self.window), state.real[..., None]
        key = state.key
        q = (newest.q * newest.real[:, None, :, None]).unflatten(1, (key.shape[1], -1)).square().sum((2, 3))
        return q * (key * real).square().sum(2) / real.sum(2)

    def most_slots(self, tokens: int, steps: int = 0) -> int | None:
        """See ``Policy``."""
        return None if self.tokens is None else self.tokens.most_slots(tokens, steps)
