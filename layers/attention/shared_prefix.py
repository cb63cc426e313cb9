"""Rows that go on from the same prompts: what the prompts left is kept once a prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
from torch import Tensor

from zoo.layers.attention.keys import EMPTY, Keys, Placed, masked
from zoo.layers.attention.parts import Part, attend_part, constant_parts, joined
from zoo.layers.attention.state import KeyValueState
from zoo.layers.cache.call import Attention
from zoo.layers.state import State
from zoo.layers.states import Several

StateType = TypeVar("StateType", bound="State | Several")


@dataclass
class SharedPrefixState(KeyValueState):
    """A cache of B = prompts x copies rows, side by side, whose slots hold what came after the prompts.

    The queries of all copies attend to their prompt in one product, which reads its keys once, and to their own keys
    apart; the two are put together by their log-sum-exps. Rows can be neither reordered nor cropped into the prompt,
    but be prompts of further rows in their turn (``fan_out`` again).

    Attributes:
        prompt: keys and values (prompts, H, P, d), not to be written to.
        visible: (prompts, P), False at padding and at sequences before the last; None where all are seen.
        copies: rows a prompt.
        outer: where the prompts themselves were rows that share one, what they share; None for no such tree.

    Paper: Juravsky et al., "Hydragen", arXiv 2402.05099.
    """

    prompt: tuple[Tensor, Tensor] = field(kw_only=True)
    visible: Tensor | None = field(kw_only=True)
    copies: int = field(kw_only=True)
    outer: SharedPrefixState | None = field(default=None, kw_only=True, repr=False)

    @classmethod
    def of(cls, state: KeyValueState, copies: int) -> SharedPrefixState:
        """After the prompts that ``state`` has read, ``copies`` rows of each."""
        held, room = state.keys(), max(1, state.key.shape[2] - state.filled)
        visible = held.position.expand(len(held.key), -1) != EMPTY
        if held.ids is not None and state.seq_idx is not None:
            visible = visible & (held.ids == state.seq_idx[:, None])

        def rows(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.repeat_interleave(copies, 0)

        empty = (
            rows(tensor[:, :, :1].new_zeros(1).expand(*tensor.shape[:2], room, tensor.shape[3])) for tensor in held[:2]
        )
        position = None if state.padding is None else held.position.new_full((len(held.key) * copies, room), EMPTY)
        ids = None if state.ids is None else state.ids.new_full((len(held.key) * copies, room), -1)
        return cls(
            *cast(tuple[Tensor, Tensor], tuple(empty)), position, ids, rows(state.padding),
            seq_idx=rows(state.seq_idx), seen=state.seen, latent=state.latent,
            prompt=held[:2], visible=None if bool(visible.all()) else visible, copies=copies,
            outer=state if isinstance(state, SharedPrefixState) else None,
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Memory of all tensors, in bytes; that of the prompts once."""
        return super().nbytes + sum(tensor.nbytes for level in self._levels() for tensor in level.prompt)

    def _levels(self) -> list[SharedPrefixState]:
        """This state, and those around it, whose prompts are seen too."""
        return [self] if self.outer is None else [self, *self.outer._levels()]

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, place: Placed, attention: Attention, *, noted: bool = False
    ) -> Tensor:
        """Remember the next tokens, and attend from them to themselves, to those since the prompt and to it."""
        new = Keys(k, v, place.position, place.ids)
        keys = self.write(new) if noted else self.remember(new, place)  # type: ignore[arg-type]
        logits = masked(attention.logits(q, keys.key, keys.value), keys.mask(place))
        own = attend_part(attention, logits, keys.value)
        prompts, copies = [], 1
        for level in self._levels():
            copies *= level.copies
            prompts.append(level._to_prompt(q, attention, copies))
        return joined([*prompts, own, *constant_parts(q, own, attention)])

    def _to_prompt(self, q: Tensor, attention: Attention, copies: int) -> Part:
        """Of all copies at once: with the heads that share keys, unless those are projected for each, they are rows of
        one matrix."""
        key, value = self.prompt
        groups = q.shape[1] if self.latent else key.shape[1]
        apart = q.unflatten(1, (groups, -1)).unflatten(0, (-1, copies))  # (prompts, copies, G, H / G, T, d)
        rows = apart.transpose(1, 2)
        logits = attention.logits(rows.flatten(2, 4), key, value)
        if self.visible is not None:
            logits = masked(logits, self.visible[:, None, None])

        def unfolded(tensor: Tensor) -> Tensor:
            return tensor.unflatten(2, rows.shape[2:5]).transpose(1, 2).flatten(2, 3).flatten(0, 1)

        part = attend_part(attention, logits, value)
        return Part(unfolded(part.output), unfolded(part.lse))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SharedPrefixState:
        """See ``State.to``."""
        moved, (key, value) = super().to(device, dtype), self.prompt
        moved.prompt = key.to(device, dtype), value.to(device, dtype)
        moved.visible = None if self.visible is None else self.visible.to(device)
        moved.outer = None if self.outer is None else self.outer.to(device, dtype)
        return moved

    def reorder(self, index: Tensor) -> None:
        """Not possible.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "rows that share a prompt stay where they are: read the prompt in as many rows to reorder them"
        )

    def crop(self, length: int) -> None:
        """Keep what belongs to the first ``length`` steps (negative: drop that many).

        Raises:
            ValueError: for fewer steps than the prompt has.
        """
        length = length if length >= 0 else self.seen + length
        prompt = sum(level.prompt[0].shape[2] for level in self._levels())
        if length < prompt:
            raise ValueError(f"the prompt of {prompt} steps is shared and cannot be cropped to {length}")
        super().crop(length)


def fan_out(state: StateType, copies: int) -> StateType:
    """The state with every row ``copies`` times, side by side: caches share what they hold, all else is copied."""
    if isinstance(state, Several):
        return state.of(fan_out(part, copies) for part in state.states)  # type: ignore[return-value]

    if (
        isinstance(state, KeyValueState)
        and type(state) in (KeyValueState, SharedPrefixState)
        and len(state.key)
        and state.filled
    ):
        return SharedPrefixState.of(state, copies)  # type: ignore[return-value]
    batch = next(tensor.shape[0] for _, tensor in state.tensors())
    device = next(tensor.device for _, tensor in state.tensors())
    state.reorder(torch.arange(batch, device=device).repeat_interleave(copies))
    return state
