"""The contract of a cache policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from zoo.layers.cache.store import Store

if TYPE_CHECKING:
    from zoo.layers.cache.call import Call
    from zoo.layers.cache.state import CacheState
    from zoo.layers.state import State


@dataclass(frozen=True)
class Policy:
    """What a state keeps, and what is attended to: a method fills one or two of the hooks.

    Hooks are given the state and the ``Call``, the newest tokens, which are the last of the slots held. A slot keeps
    the position of its token, so that evicting others turns neither its key nor those of later tokens. Tensors of the
    policy in ``state.data`` (a slot each) and ``state.notes`` (a row each) are replaced, never written to: then states
    roll back. ``attend`` may change notes alone; what the other hooks do is done once the tokens are final.

    Attributes:
        store: how keys and values are kept.
        per_head: key-value heads hold different tokens.
        channels: it reads queries and keys channel by channel, so that latent attention, whose keys have another
            form in the state, cannot have it.
        learns: the option that ``learnt`` fills where it is None.
        paper: arXiv's number.
    """

    per_head: ClassVar[bool] = False
    channels: ClassVar[bool] = False
    learns: ClassVar[str] = ""
    paper: ClassVar[str] = ""

    store: Store = dataclasses.field(default_factory=Store, kw_only=True)

    def build(self, key: Tensor, value: Tensor, **place: Any) -> State:
        """The state of one layer, of whose keys and values (B, H, 0, d) there are none yet.

        Args:
            place: ``layer``, the number of the mixer; ``layers`` that the policy governs, of which this is number
                ``order``; ``latent`` attention.
        """
        from zoo.layers.cache.state import CacheState

        return CacheState.empty(self, key, value, **place)  # pyright: ignore[reportArgumentType]

    def learnt(self, model: Any) -> Policy:
        """The policy, with what ``zoo.keep_heads`` keeps of a model's heads if it has nothing of its own."""
        roles = getattr(model, "head_roles", {})
        if self.learns not in roles or getattr(self, self.learns) is not None:
            return self
        return dataclasses.replace(self, **{self.learns: roles[self.learns]})

    def start(self, state: CacheState) -> None:
        """Before the first token: add what else a slot or a row has, by ``state.add``."""

    def attend(self, state: CacheState, call: Call) -> Tensor:
        """The new tokens, already held, attend: (B, H, T, d). What is not held any more cannot be seen."""
        return state.attend_all(call)

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """After a call with several new tokens: a prompt, a chunk of one, or another turn."""

    def after_step(self, state: CacheState, call: Call) -> None:
        """After a new token, or the accepted tokens of a draft."""

    def after_layers(self, states: Sequence[CacheState]) -> None:
        """After a call, with the states of all layers of the policy: what one layer keeps may depend on the others."""

    def after_layer(self, state: CacheState, hidden: Tensor, later: Sequence[CacheState]) -> Tensor | None:
        """Between this layer and the next, which are given the residual stream (B, T, dim): the places (B, n), in
        order, of the tokens that go on; None for all. The states of ``later`` layers may be told by their notes."""
        return None

    def most_slots(self, tokens: int, steps: int = 0) -> int | None:
        """Slots that a layer may hold between calls after so many tokens, of which the last ``steps`` came one by one;
        None for no limit."""
        return None

    @property
    def notes(self) -> bool:
        """Whether anything but the tokens themselves is remembered, or anything is forgotten."""
        hooks = ("attend", "after_prefill", "after_step", "after_layers", "after_layer")
        return any(getattr(type(self), hook) is not getattr(Policy, hook) for hook in hooks)

    @property
    def prunes(self) -> bool:
        """Whether tokens may end between layers."""
        return type(self).after_layer is not Policy.after_layer
