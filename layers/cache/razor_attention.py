"""Retrieval heads, and heads that keep the mean of what they drop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from zoo.layers.cache.budget import Budget, require_budget
from zoo.layers.cache.call import Call
from zoo.layers.cache.dense import Dense
from zoo.layers.cache.heads import HeadsState
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.pruning import governed_parts
from zoo.layers.cache.state import CacheState
from zoo.layers.options import require_at_least
from zoo.layers.state import State


@dataclass(frozen=True)
class CompensatedHeads(Policy):
    """Keeps the first and the newest tokens, and one slot for all that were dropped; see ``RazorAttention``.

    The compensation token takes the place of the first token that was dropped, at that one's position, and its "bias"
    is the logarithm of the "count" of tokens that it stands for.
    """

    sink: int = 4
    recent: Budget = 4000
    weighted: bool = True

    def start(self, state: CacheState) -> None:
        """Tokens that a slot stands for beside its own, and what its logit is raised by."""
        state.add("merged", 1)
        state.add("bias", 1)

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """Drop, and add to the compensation token what was dropped."""
        recent = torch.as_tensor(state.slots(self.recent), device=call.q.device).view(-1, 1, 1)
        if state.filled <= self.sink + 1 + int(recent.min()):
            return
        position = state.position.double()
        stays = (position < self.sink) | (position >= state.now - recent)
        drops = (~stays & state.real).double()  # (B, 1, S)
        count = (state.held("merged") + 1) * drops  # a compensation token counts as all that it stands for
        total = count.sum(-1, keepdim=True)
        if not bool((drops.sum(-1) > 1).any()):
            return
        share = (count / total.clamp(min=1))[..., None]
        first = position.masked_fill(drops == 0, torch.inf).argmin(-1, keepdim=True)  # (B, 1, 1)
        here = (torch.arange(state.filled, device=first.device) == first) & (drops.sum(-1, keepdim=True) > 1)
        for name in ("key", "value"):
            vectors = getattr(state, name)
            mean = (vectors * share.to(vectors.dtype)).sum(2, keepdim=True)
            state.renew(name, torch.where(here[..., None], mean, vectors))
        merged = torch.where(here, total - 1, state.held("merged"))
        state.renew("merged", merged)
        state.renew("bias", (merged + 1).log() if self.weighted else torch.zeros_like(merged))
        state.keep(stays | here | (drops.sum(-1, keepdim=True) <= 1))


@dataclass(frozen=True)
class RazorAttention(Policy):
    r"""Retrieval heads keep a prompt whole; the others its first and newest tokens, and one for all that they drop.

    The compensation token has the mean key and the mean value of the N tokens dropped. In numerator and denominator of
    the softmax it counts N times, that is its logit is raised by log N, as in the paper; ``weighted=False`` lets it
    count once, as a published code does. Keys are averaged as they are turned. What is generated is added.

    Which heads retrieve is told by scores that ``zoo.cache.head_scores`` measures: of the whole model's key-value heads
    the share ``echo`` with the best echo scores, and the share ``induction`` with the best induction scores.

    Args:
        scores: of each layer that the policy governs and each key-value head, its echo and its induction score; without
            them those that ``zoo.keep_heads`` gave the model, or else every second head of a layer, from the first,
            retrieves, which stands in for nothing measured.
        echo, induction: shares of the heads.
        sink: first tokens that all keep.
        recent: newest tokens of a prompt that all keep; as memory, of the heads that drop.
        weighted: see above.

    Raises:
        ValueError: for shares outside [0, 1], sinks below 0, or recent tokens out of range.

    Paper: Tang et al., "RazorAttention", arXiv 2407.15891.
    """

    channels: ClassVar[bool] = True
    learns: ClassVar[str] = "scores"
    paper: ClassVar[str] = "2407.15891"

    scores: tuple[tuple[tuple[float, float], ...], ...] | None = None
    echo: float = 0.01
    induction: float = 0.14
    sink: int = 4
    recent: Budget = 4000
    weighted: bool = True

    def __post_init__(self):
        require_at_least(0, sink=self.sink)
        require_budget(recent=self.recent)
        for name, share in (("echo", self.echo), ("induction", self.induction)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}, a share of the heads, must be in [0, 1], got {share}")

    def build(self, key: Tensor, value: Tensor, **place: Any) -> State:
        """Heads of both kinds."""
        others = CompensatedHeads(self.sink, self.recent, self.weighted, store=self.store)
        retrieves = self.roles(place["order"], place["layers"], key.shape[1])
        kinds = [Dense(store=self.store) if one else others for one in retrieves]
        return HeadsState.of_roles(kinds, key, value, **place)

    def roles(self, order: int, layers: int, heads: int) -> list[bool]:
        """Whether each head of a layer retrieves.

        Raises:
            ValueError: for scores of another number of layers or heads.
        """
        if self.scores is None:
            return [head % 2 == 0 for head in range(heads)]
        if len(self.scores) != layers or len(self.scores[order]) != heads:
            raise ValueError(
                f"scores must have a row a layer and a pair a key-value head: {layers} layers, {heads} heads here"
            )
        every = torch.tensor([pair for row in self.scores for pair in row])  # (heads of the model, 2)
        best = every.argsort(dim=0, descending=True, stable=True)
        chosen = {
            index
            for column, share in enumerate((self.echo, self.induction))
            for index in best[: round(share * len(every)), column].tolist()
        }
        first = sum(len(row) for row in self.scores[:order])
        return [first + head in chosen for head in range(heads)]


@dataclass(frozen=True, eq=False)
class Watching(Policy):
    """Dense, and notes the echo and induction scores of every key-value head in ``found`` (order -> (G, 2))."""

    copy: int = 0
    found: Any = None

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """Attention to earlier copies of the same token, and to what follows these."""
        total: Any = 0
        counted = call.positions[0] >= self.copy  # of the tokens that pass this layer
        for start in range(0, call.length, 256):
            part, key = call.part(start, start + 256), state.position[0]
            back = part.positions[0, :, None] - key  # (T, S)
            copies = [(back > 0) & ((back + ahead) % self.copy == 0) & (key >= ahead) for ahead in (0, 1)]
            weights = state.weights(part)[0].double() * counted[start : start + 256, None]
            total = total + torch.einsum("ghts,cts->ghc", weights, torch.stack(copies).double())
        self.found[state.order] = (total / counted.sum().clamp(min=1)).amax(1)


@torch.no_grad()
def head_scores(
    model: Any, *, copy: int = 2500, copies: int = 4, generator: torch.Generator | None = None
) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Echo and induction scores of every key-value head, for ``RazorAttention``.

    A text is ``copy`` random tokens, ``copies`` times. The echo score is the attention of a token to the earlier copies
    of itself, the induction score that to the tokens after these: means over the tokens after the first copy, and of a
    key-value head the largest of its query heads.

    Args:
        model: a language model.
        copy: random tokens.
        copies: how often they are repeated.
        generator: source of the tokens.
    """
    tokens = torch.randint(model.config.vocab_size, (1, copy), generator=generator).repeat(1, copies)
    state = model.init_state(1, cache=(watching := Watching(copy, {})))
    watching.found.update({part.order: torch.zeros(part.heads, 2) for part in governed_parts(state)})
    model(tokens.to(next(model.parameters()).device), state, logits_to_keep=1)
    return tuple(tuple(map(tuple, watching.found[order].tolist())) for order in sorted(watching.found))
