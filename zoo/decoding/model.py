"""Another, smaller model as the draft."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from zoo.decoding.draft import Draft
from zoo.decoding.drafting import Drafting
from zoo.decoding.reader import Reader
from zoo.generate.decode import generating, prefilled
from zoo.generate.options import Options
from zoo.generate.prompts import Batch
from zoo.language.base import LanguageModel


@dataclasses.dataclass(frozen=True)
class ModelDraft(Draft):
    """A model drafts for another: any of the zoo's that knows the same tokens, from a state of its own.

    Raises:
        ValueError: for what is no language model, for options out of range, and on use for another vocabulary.
    """

    model: LanguageModel
    """The draft."""

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.model, LanguageModel):
            raise ValueError(f"a draft is a language model, got {type(self.model).__name__}")

    def check(self, model: LanguageModel, options: Options) -> None:
        """Raise a ValueError for another vocabulary."""
        ours, theirs = self.model.config.vocab_size, model.config.vocab_size
        if ours != theirs:
            raise ValueError(f"a draft must know the tokens of the model: it has {ours}, the model {theirs}")

    def begin(self, model: LanguageModel, options: Options) -> Drafting:
        """Before the prompts."""
        return _ModelDrafting(self, model, options)


class _ModelDrafting(Drafting[ModelDraft]):
    """Two models, each with its state."""

    def ready(self) -> AbstractContextManager[None]:
        """Within it the drafting model is in eval mode."""
        return generating(self.draft.model, self.options)

    def read(self, prompts: Batch) -> Tensor:
        """Both read the prompts."""
        options, copies, model = self.options, self.options.num_samples, self.draft.model
        logits, state = prefilled(self.model, prompts, options, copies)
        self.target = Reader(self.model, state)
        batch, length = prompts.tokens.shape
        state = model.init_state(batch, length + options.max_new_tokens)
        self.drafter = Reader(model, prefilled(model, prompts, options, copies, state)[1])
        self.unread = prompts.tokens.new_empty(len(logits), 0)  # said, and not given to the draft yet
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
