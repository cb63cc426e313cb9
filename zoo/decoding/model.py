"""Another, smaller model as the draft."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from zoo.decoding.drafting import Drafting, Rounds
from zoo.decoding.reader import Reader
from zoo.decoding.tree import TreeDraft, TreeDrafting, TreeReader
from zoo.generate.decode import generating, prefilled
from zoo.generate.options import Options
from zoo.generate.prompts import Batch
from zoo.language.base import LanguageModel
from zoo.layers import ModelState


@dataclasses.dataclass(frozen=True)
class ModelDraft(TreeDraft):
    """A model drafts for another: any of the zoo's that knows the same tokens, from a state of its own.

    With ``widths`` it drafts trees, where both remember by plain caches of keys or are recurrent.

    Raises:
        ValueError: for what is no language model, for options out of range, and on use for another vocabulary.
    """

    model: LanguageModel
    """The draft."""

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.model, LanguageModel):
            raise ValueError(f"a draft is a language model, got {type(self.model).__name__}")

    def readers(self, model: LanguageModel) -> tuple[LanguageModel, ...]:
        """Both."""
        return model, self.model

    def check(self, model: LanguageModel, options: Options) -> None:
        """Raise a ValueError for another vocabulary, or a tree that cannot be read."""
        ours, theirs = self.model.config.vocab_size, model.config.vocab_size
        if ours != theirs:
            raise ValueError(f"a draft must know the tokens of the model: it has {ours}, the model {theirs}")
        super().check(model, options)

    def begin(self, model: LanguageModel, options: Options) -> Rounds:
        """Before the prompts."""
        levels = self.levels(model, options)
        if max(levels) > 1:
            return _ModelTrees(self, model, options)
        return ModelDrafting(dataclasses.replace(self, widths=(), length=len(levels)), model, options)


class _Pair(Rounds[ModelDraft]):
    """Two models, each with its state."""

    def ready(self) -> AbstractContextManager[None]:
        """Within it the drafting model is in eval mode."""
        return generating(self.draft.model, self.options)

    def begun(self, prompts: Batch) -> tuple[Tensor, ModelState, ModelState]:
        """Both read the prompts: the model's logits, its state and the draft's."""
        options, copies, model = self.options, self.options.num_samples, self.draft.model
        logits, state = prefilled(self.model, prompts, options, copies)
        prompts = self.shortened(prompts)
        batch, length = prompts.tokens.shape
        own = model.init_state(batch, length + options.max_new_tokens)
        self.unread = prompts.tokens.new_empty(len(logits), 0)  # said, and not given to the draft yet
        return logits, state, prefilled(model, prompts, options, copies, own)[1]

    def shortened(self, prompts: Batch) -> Batch:
        """What the draft reads of the prompts."""
        return prompts


class ModelDrafting(_Pair, Drafting[ModelDraft]):
    """Chains."""

    def read(self, prompts: Batch) -> Tensor:
        """Both read the prompts."""
        logits, state, own = self.begun(prompts)
        self.target, self.drafter = Reader(self.model, state), Reader(self.draft.model, own)
        return logits

    def guess(self, token: Tensor) -> Tensor:
        """The draft reads on."""
        tokens = token if self.drafter.given else torch.cat([self.unread, token], 1)
        return self.drafter(tokens, logits_to_keep=1)[:, -1]

    def verify(self, tokens: Tensor) -> Tensor:
        """The model reads on."""
        self.verified = tokens
        return self.target(tokens)

    def keep(self, count: int) -> None:
        """Both forget what was not said; of a draft that was accepted whole the drafting model lacks the last token."""
        self.target.keep(count)
        final, read = torch.cat([self.unread, self.verified[:, :count]], 1), self.drafter.count
        self.drafter.keep(min(read, final.shape[1]))
        self.unread = final[:, read:]


class _ModelTrees(_Pair, TreeDrafting[ModelDraft]):
    """Trees."""

    def read(self, prompts: Batch) -> Tensor:
        """Both read the prompts."""
        logits, state, self.own = self.begun(prompts)
        self.verifier, self.drafter = self.remembering(state), TreeReader(self.draft.model, self.own)
        return logits

    def first(self, token: Tensor) -> Tensor:
        """What was said is final, and is read as any text."""
        logits = self.draft.model(torch.cat([self.unread, token], 1), self.own, logits_to_keep=1)
        self.drafter = TreeReader(self.draft.model, self.own)
        return logits

    def guess(self, tokens: Tensor, parent: Tensor) -> Tensor:
        """The draft reads a level."""
        return self.drafter(tokens, parent)

    def keep(self, tokens: Tensor, path: Tensor) -> None:
        """A node of the last level has not been read."""
        read = int((path < self.drafter.count).all(0).sum())
        self.drafter.keep(path[:, :read].clamp(min=0))  # rows that have ended go nowhere
        self.unread = tokens[:, read:]
