"""A model's own first blocks as the draft: the others read what they said, from the same states."""

from __future__ import annotations

import dataclasses
from typing import Generic, TypeVar

import torch
from torch import Tensor

from zoo.decoding.draft import Draft
from zoo.decoding.drafting import Drafting
from zoo.decoding.reader import Reader
from zoo.generate.decode import prefilled
from zoo.generate.options import Options
from zoo.generate.prompts import Batch
from zoo.language.base import LanguageModel


def tokens_per_block(rate: float, exit: int, length: int, depth: int) -> float:
    r"""Tokens that a round is expected to give, over the blocks whose weights it reads.

    .. math::
        \frac{1 + a + \dots + a^d}{d l + L}

    Args:
        rate: a, how often a drafted token is accepted.
        exit: l, blocks before the exit.
        length: d, drafted tokens.
        depth: L, blocks of the model.

    Paper: Elhoushi et al. start from it, "LayerSkip", arXiv 2404.16710; "DEL: Context-Aware Dynamic Exit Layer for
    Efficient Self-Speculative Decoding", arXiv 2504.05598.
    """
    return sum(rate**n for n in range(length + 1)) / (length * exit + depth)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ExitDraft(Draft):
    """What drafts by an early exit have in common."""

    def check(self, model: LanguageModel, options: Options) -> None:
        """Raise a ValueError unless the blocks are run one after the other, and no cache policy watches them."""
        if not model.straight:
            raise ValueError(
                f"the blocks of {type(model).__name__} are not run one after the other: there is no early exit"
            )
        if options.cache is not None:
            raise ValueError("a draft by the first blocks leaves the others behind: leave out cache=, or draft=")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyExit(_ExitDraft, name="early_exit"):
    """The first blocks, the final norm and the head draft; the other blocks read all drafted tokens at once.

    Nothing is computed twice: the first blocks' states and outputs serve both. The better the model was trained to
    exit early, the more is accepted.

    Paper: Elhoushi et al., "LayerSkip", arXiv 2404.16710, section 4.3.
    """

    exit: int | None = None
    """Blocks that draft; half of them when None."""

    def check(self, model: LanguageModel, options: Options) -> None:
        """Raise a ValueError, also unless some blocks draft and some are left."""
        super().check(model, options)
        _require_exits(model, (self.exit_of(model),))

    def exit_of(self, model: LanguageModel) -> int:
        """Blocks of a model that draft."""
        return max(1, len(model.blocks) // 2) if self.exit is None else self.exit

    def begin(self, model: LanguageModel, options: Options) -> Drafting:
        """Before the prompts."""
        return _ExitDrafting(self, model, options, self.exit_of(model))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicExit(_ExitDraft, name="del"):
    r"""DEL: where to exit and how much to draft is chosen anew before every draft, from how often each exit was right.

    What every exit would have said of each token that was read is looked up in passing (shadow tokens). Of each exit l
    a running estimate a_l of the model's probability of its likeliest token is kept, at temperature 0 how often both
    agree; the next draft takes l and d of the most ``tokens_per_block``. d = 0 is plain decoding.

    The paper's smoothing, first estimates and largest d were not to be found: those here are this library's.

    Paper: Entezari Zarch et al., "DEL: Context-Aware Dynamic Exit Layer for Efficient Self-Speculative Decoding", arXiv
    2504.05598.
    """

    exits: tuple[int, ...] | None = None
    """Numbers of blocks that may draft; None for all, or eight of many."""
    memory: float = 0.8
    """Share of an estimate that stays when a token of a draft has been read."""
    prior: float = 0.5
    """The estimates before the first draft."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("memory", "prior"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")

    def check(self, model: LanguageModel, options: Options) -> None:
        """Raise a ValueError, also unless every exit leaves some blocks."""
        super().check(model, options)
        _require_exits(model, self.exits_of(model))

    def exits_of(self, model: LanguageModel) -> tuple[int, ...]:
        """Numbers of blocks of a model that may draft."""
        depth = len(model.blocks)
        return tuple(range(1, depth, -(-(depth - 1) // 8) or 1)) if self.exits is None else self.exits

    def begin(self, model: LanguageModel, options: Options) -> Drafting:
        """Before the prompts."""
        return _DynamicDrafting(self, model, options)


def _require_exits(model: LanguageModel, exits: tuple[int, ...]) -> None:
    depth = len(model.blocks)
    if not exits or not all(0 < exit < depth for exit in exits):
        raise ValueError(f"an exit lies behind at least one of the {depth} blocks and before the last: got {exits}")


ExitType = TypeVar("ExitType", bound=_ExitDraft)


class _ExitDrafting(Drafting[ExitType], Generic[ExitType]):
    """One model and one state, in which the first blocks are ahead while a draft is open."""

    def __init__(self, draft: ExitType, model: LanguageModel, options: Options, exit: int):
        super().__init__(draft, model, options)
        self.exit = exit
        self.outputs: list[list[Tensor]] = [[] for _ in model.blocks]  # of each block since ``keep``, (B, n, dim)

    def read(self, prompts: Batch) -> Tensor:
        """The whole model reads the prompts."""
        logits, state = prefilled(self.model, prompts, self.options, self.options.num_samples)
        self.reader = Reader(self.model, state)
        return logits

    def guess(self, token: Tensor) -> Tensor:
        """The first blocks read on, and the head."""
        return self.model.read_out(self._through(self.model.enter(token), 0, self.exit))[:, -1]

    def verify(self, tokens: Tensor) -> Tensor:
        """The first blocks read what they have not, the others everything."""
        known = sum(x.shape[1] for x in self.outputs[self.exit - 1])
        if known < tokens.shape[1]:
            self._through(self.model.enter(tokens[:, known:]), 0, self.exit)
        self.reader.given = [tokens]
        x = torch.cat(self.outputs[self.exit - 1], 1)
        return self.model.read_out(self._through(x, self.exit, len(self.outputs)))

    def keep(self, count: int) -> None:
        """All blocks forget what was not said."""
        self.reader.keep(count)
        self.outputs = [[] for _ in self.outputs]

    def _through(self, x: Tensor, first: int, last: int) -> Tensor:
        for index in range(first, last):
            x = self.model.blocks[index](x, self.reader.state[index], None)
            self.outputs[index].append(x)
        self.draft.counts.blocks += last - first
        return x


class _DynamicDrafting(_ExitDrafting[DynamicExit]):
    """It learns from what it reads."""

    def __init__(self, draft: DynamicExit, model: LanguageModel, options: Options):
        self.rates = dict.fromkeys(draft.exits_of(model), draft.prior)
        super().__init__(draft, model, options, min(self.rates))

    def most(self) -> int:
        """The most promising exit, and its length."""
        depth = len(self.outputs)
        choices = [(exit, length) for exit in self.rates for length in range(self.draft.length + 1)]
        self.exit, length = max(choices, key=lambda one: tokens_per_block(self.rates[one[0]], *one, depth))
        return length

    def note(self, laws: list[Tensor]) -> None:
        """What each exit would have said, as far as the text went on as drafted."""
        law, keep = torch.stack(laws, 1), self.draft.memory ** len(laws)
        for exit in self.rates:
            said = self.model.read_out(torch.cat(self.outputs[exit - 1], 1)[:, : len(laws)]).argmax(-1)
            right = float(law.gather(-1, said[..., None]).mean())
            self.rates[exit] = keep * self.rates[exit] + (1 - keep) * right
