"""The state of attention under a cache policy."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.attention.keys import EMPTY, Place, Placed
from zoo.layers.cache.budget import Budget, slots_of
from zoo.layers.cache.buffer import written
from zoo.layers.cache.call import Attention, Call
from zoo.layers.cache.slots import Slots, taken

if TYPE_CHECKING:
    from zoo.layers.cache.policy import Policy


@dataclass
class CacheState(Slots):
    """Slots that a policy governs, and the attention to them.

    Four clocks are kept apart: ``seen`` counts the steps given, ``filled`` the slots held, ``place`` tells the next
    position of each row, and ``committed`` what a rollback returns to. While a draft is open, that is after ``commit``,
    tokens are added and nothing is evicted or noted: the next ``commit`` does that, for those that it accepts. The
    newest tokens are in the last slots; the order of the others means nothing.

    Attributes:
        padding: (B, P), which of the first P steps were padding; later ones were not. None for none.
        layer: the number of the mixer.
        layers, order: mixers that the policy governs, and which of them this is.
        latent: the keys and values of all heads are projections of what is held.
        settled: steps that the policy has been shown, which cannot be cropped.
        aligned: every step since has a slot.
        text: ids (B, T) of the tokens of the next call, for policies that add "token" to the slots. A layer on its own
            is not told, nor one that some tokens do not pass: they have zeros.
        given: where the tokens of the next call stand, if not all of them pass this layer.
        following: the state of the next layer that is fetched while this one attends, a weak reference.
        scratch: what ``Policy.attend`` leaves to the hook that follows; None while a draft is open.
    """

    padding: Tensor | None = None
    layer: int = 0
    layers: int = 1
    order: int = 0
    latent: bool = False
    settled: int = 0
    aligned: bool = True
    given: Place | None = None
    text: Tensor | None = dataclasses.field(default=None, repr=False)
    scratch: Any = None
    draft: list[tuple[Tensor, Tensor]] = dataclasses.field(default_factory=list)  # queries and their positions
    exact: tuple[Tensor, Tensor] | None = dataclasses.field(default=None, repr=False)  # of the first call, as given
    following: weakref.ref[CacheState] | None = dataclasses.field(default=None, repr=False)
    attention: Any = dataclasses.field(default=None, repr=False)  # a weak reference: copies of a state copy no model

    @classmethod
    def empty(cls, policy: Policy, key: Tensor, value: Tensor, **place: Any) -> CacheState:
        """A state without tokens, see ``Policy.build``."""
        state = cls(policy, {}, **place)
        for name, like in (("key", key), ("value", value)):
            state.data |= {name + ending: part for ending, part in policy.store.encode(like[:, :, :0]).items()}
        heads = key.shape[1] if policy.per_head else 1
        state.data["position"] = torch.empty(len(key), heads, 0, dtype=torch.int64, device=key.device)
        policy.start(state)  # pyright: ignore[reportArgumentType]
        return state

    @property
    def key(self) -> Tensor:
        """Keys (B, H, filled, d)."""
        return super().key if self.exact is None else self.exact[0]

    @property
    def value(self) -> Tensor:
        """Values (B, H, filled, d)."""
        return super().value if self.exact is None else self.exact[1]

    @property
    def tokens(self) -> int | Tensor:
        """Tokens given so far; (B,) where some of the steps were padding."""
        return self.seen if self.padding is None else self.seen - self.padding.sum(1)

    @property
    def now(self) -> int | Tensor:
        """The next position; (B, 1, 1) where it differs between the rows."""
        tokens = self.tokens
        return tokens if isinstance(tokens, int) else tokens[:, None, None]

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values, as they are attended to."""
        return next(t.dtype for name, t in self.data.items() if name.startswith("value") and t.is_floating_point())

    @property
    def steps_alike(self) -> bool:
        """The next token stands at one position in all rows, which have no names."""
        return self.padding is None and self.seq_idx is None and self.given is None

    def slots(self, budget: Budget, least: int = 1) -> int | Tensor:
        """Slots that a budget allows now; (B,) where that differs between the rows."""
        return slots_of(budget, self.tokens, self.slot_bytes, self.layers, least)

    def newest(self, count: int | Tensor) -> Tensor:
        """(B, 1 or H, filled), which slots hold one of the ``count`` newest positions, an int or (B,)."""
        return (self.position >= self.now - (count if isinstance(count, int) else count[:, None, None])) & self.real

    def place(self, length: int, seq_idx: Tensor | None = None) -> Place:
        """Where the next ``length`` tokens stand; padding, negative ids, takes no position.

        Raises:
            ValueError: for a second sequence in a row: what is kept of the first is no past of it.
        """
        if self.given is not None:
            return self.given
        position = torch.arange(self.seen, self.seen + length, device=self.data["position"].device)
        if self.padding is not None:
            position = position - self.padding.sum(1, keepdim=True)
        if seq_idx is None:
            return Place(position, None if self.seq_idx is None else self.seq_idx[:, None].expand(-1, length))
        padding, named = seq_idx < 0, seq_idx.amax(1)
        named = named if self.seq_idx is None else self.seq_idx.where(self.seq_idx >= 0, named)
        if bool(((seq_idx != named[:, None]) & ~padding).any()):
            raise ValueError(
                f"under a cache policy each row holds one sequence, got other ids in seq_idx than {named.tolist()}: "
                f"run packed sequences without {type(self.policy).__name__}, or each from a state of its own"
            )
        if bool(padding.any()):
            position = (position - padding.cumsum(1)).masked_fill(padding, EMPTY)
        return Place(position, seq_idx, named=True)

    def advance(self, place: Place) -> None:
        """Note that the tokens at ``place`` have passed, remembered or not; of ``given`` ones that is known."""
        if place is self.given:
            return
        if place.ids is not None and place.named:
            self.advance_sequence(place.ids)
            if place.position.dim() == 2:
                padding = place.position == EMPTY
                before = padding[:, :0] if self.padding is None else self.padding
                self.padding = torch.cat([F.pad(before, (0, self.seen - before.shape[1])), padding], dim=1)
        self.seen += place.position.shape[-1]

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, place: Placed, attention: Attention, *, noted: bool = False
    ) -> Tensor:
        """Remember the next tokens, and attend from them.

        Args:
            q: queries (B, H, T, d).
            k, v: keys and values (B, G, T, d), in the form that the state keeps.
            place: of the tokens; ``noted``: ``advance`` has been told of them.
            attention: that they are of.

        Returns:
            (B, H, T, d).
        """
        following = None if self.following is None else self.following()
        if following is not None:
            following.prefetch()
        self.attention = weakref.ref(attention) if isinstance(attention, nn.Module) else attention
        self.aligned = self.aligned and not noted and self.given is None
        if not noted:
            self.advance(place)  # type: ignore[arg-type]
        call = Call(q, place.position, attention)
        self.exact = None if self.filled else (k, v)
        self.append(k, v, place.position)
        if "token" in self.data and self.text is not None and self.text.shape[1] == call.length:
            held = self.data["token"]
            ids = self.text[:, None].expand(-1, held.shape[1], -1)
            self.data["token"] = written(held, ids, self.filled - call.length, 2)
        self.text = None
        empty = not call.length  # all tokens of the call pass by
        y = v[:, :1, :0].expand(*q.shape[:2], -1, -1) if empty else self.policy.attend(self, call)  # pyright: ignore
        self.exact = None
        if self.committed is None:
            hook = self.policy.after_step if call.length == 1 else self.policy.after_prefill
            self._settle(call, hook)  # pyright: ignore[reportArgumentType]
        else:
            self.draft.append((q, place.position))
        self.scratch = None
        return y

    def attend_all(self, call: Call) -> Tensor:
        """The new tokens attend to everything held, up to themselves: (B, H, T, d)."""
        if "bias" not in self.data or not self.evicted:
            return call.attention.attend(call.q, self.key, self.value, self.mask(call))
        logits = call.attention.logits(call.q, self.key, self.value) + self.held("bias")[:, :, None, None]
        return call.attention.mixed(call.attention.weights(self.hidden(logits, call)), self.value)

    def attend_to(self, call: Call, slots: Tensor, seen: Tensor | None = None) -> Tensor:
        """The new tokens attend to the slots (B, 1 or G, n), where ``seen``, up to themselves: (B, H, T, d)."""
        key, value, position = (taken(tensor, slots) for tensor in (self.key, self.value, self.position))
        position = position if seen is None else position.masked_fill(~seen, EMPTY)
        return call.attention.attend(call.q, key, value, visible(call, position))

    def mask(self, call: Call) -> Tensor | None:
        """What each of the newest tokens sees of all that is held, as in ``Attended``."""
        length, past = call.length, self.filled - call.length
        if past == 0 and self.padding is None:  # what a row may lack is at its end
            return None
        if not self.whole or call.position.dim() == 2:
            return visible(call, self.position)
        if length == 1:
            return None
        return torch.ones(length, self.filled, dtype=torch.bool, device=call.q.device).tril(past)

    def hidden(self, logits: Tensor, call: Call) -> Tensor:
        """Logits (B, G, H / G, T, filled) of a call, -inf for later tokens and empty slots; padding sees everything."""
        position, query = self.position[:, :, None, None], call.positions[:, None, None, :, None]
        return logits.masked_fill((position > query) & (query != EMPTY), -torch.inf)

    def weights(self, call: Call) -> Tensor:
        """What the tokens of a call give to all that is held: (B, G, H / G, T, filled), nothing from padding."""
        logits = self.hidden(call.attention.logits(call.q, self.key, self.value), call)
        return call.attention.weights(logits) * call.real[:, None, None, :, None]

    def mass(self, call: Call, chunk: int = 256) -> Tensor:
        """The weights of all tokens of a call added up, (B, G, H / G, filled); those of ``chunk`` exist at once."""
        parts = [call.part(start, start + chunk) for start in range(0, call.length, chunk)]
        return torch.stack([self.weights(part).sum(3) for part in parts]).sum(0)

    def reset(self) -> None:
        """Forget all tokens."""
        place = {name: getattr(self, name) for name in ("layer", "layers", "order", "latent")}
        fresh = type(self).empty(self.policy, self.key[:, :, :0], self.value[:, :, :0], **place)
        self.__dict__.update(fresh.__dict__)

    def crop(self, length: int) -> None:
        """Keep what belongs to the first ``length`` steps (negative: drop that many).

        Raises:
            ValueError: for steps that the policy has been shown: what it evicted or noted then is not to be had back.
        """
        length = max(0, min(self.seen, length if length >= 0 else self.seen + length))
        if length == 0:
            return self.reset()
        if length < self.settled:
            raise ValueError(
                f"{type(self.policy).__name__} has been shown {self.settled} steps, so that the state cannot go back "
                f"to {length}: commit before what may be forgotten"
            )
        gone, self.seen = self.seen - length, length
        self.padding = None if self.padding is None else self.padding[:, :length]
        if isinstance(self.committed, CacheState):
            self.notes = dict(self.committed.notes)
        if self.aligned:
            self.filled -= gone
        else:
            self._empty_from(self.now)
        self._crop_draft(gone)

    def commit(self, count: int | None = None) -> None:
        """See ``State.commit``; the policy is shown what was accepted."""
        if count is not None:
            self.rollback(self.uncommitted - count)
        draft, self.draft, self.committed = self.draft, [], None
        if draft:
            padded = any(position.dim() == 2 for _, position in draft)
            position = [position.expand(len(q), -1) if padded else position for q, position in draft]
            call = Call(torch.cat([q for q, _ in draft], 2), torch.cat(position, -1), self.attention())
            self._settle(call, self.policy.after_step)  # pyright: ignore[reportArgumentType]
        self.committed = self._copy()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of all there is."""
        yield from super().tensors()
        for index, (q, _) in enumerate(self.draft):
            yield f"draft.{index}", q

    def map(self, function: Callable[[str, Tensor], Tensor]) -> None:
        """See ``State.map``."""
        super().map(function)
        self.draft = [
            (function("draft", q), function("draft", position) if position.dim() == 2 else position)
            for q, position in self.draft
        ]

    def _settle(self, call: Call, hook: Callable[[CacheState, Call], None]) -> None:
        if call.length:
            hook(self, call)
        self.settled = self.seen if self.policy.notes else self.settled

    def _empty_from(self, position: int | Tensor) -> None:
        """Without the tokens from a position on, where a step need not have a slot."""
        self.data["position"] = self.data["position"].masked_fill(self.data["position"] >= position, EMPTY)
        used = self.real.any(1).any(0).nonzero()
        self.filled, self.whole = int(used[-1]) + 1 if len(used) else 0, False

    def _crop_draft(self, gone: int) -> None:
        """Without the queries of the last ``gone`` steps."""
        if not self.aligned:
            now = self.tokens if isinstance(self.tokens, int) else self.tokens[:, None]
            self.draft = [(q, position.masked_fill(position >= now, EMPTY)) for q, position in self.draft]
            return
        while gone and self.draft:
            q, position = self.draft.pop()
            rest = max(0, q.shape[2] - gone)
            gone -= q.shape[2] - rest
            if rest:
                self.draft.append((q[:, :, :rest], position[..., :rest]))

    def _copy(self):
        copied = super()._copy()
        copied.draft = list(self.draft)
        return copied


def visible(call: Call, position: Tensor) -> Tensor:
    """Which of slots at ``position`` (B, 1 or G, S) each query sees: (B, 1 or H, T, S). Padding sees everything."""
    query = call.positions[:, None, :, None]
    mask = (position[:, :, None] <= query) | (query == EMPTY)
    return mask if mask.shape[1] == 1 else mask.repeat_interleave(call.q.shape[1] // mask.shape[1], dim=1)
