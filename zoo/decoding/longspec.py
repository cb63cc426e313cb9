"""A layer of the model's own that drafts from its last cache."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from zoo.decoding.draft_layer import last_attention, last_cache
from zoo.decoding.tree import TreeDraft, TreeDrafting
from zoo.generate.decode import prefilled
from zoo.generate.options import Options
from zoo.generate.prompts import Batch
from zoo.language.base import LanguageModel
from zoo.layers import ModelState, State
from zoo.layers.attention.tree import branching


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongSpec(TreeDraft, name="longspec"):
    """A draft layer (``zoo.decoding.add_draft_layer``) says trees of tokens, which the model reads in one pass.

    Of the text the layer keeps a window of keys and values, however long that is; what lies before it reads in the
    model's last cache, which holds the tokens that were said, none of a draft. What the authors' code does at T > 0 is
    not the model's law; here trees are samples without replacement, and what comes out is exactly that.

    Paper: Yang et al., "LongSpec: Long-Context Lossless Speculative Decoding with Efficient Drafting and Verification",
    arXiv 2502.17421.
    """

    widths: tuple[int, ...] = (4, 8, 8, 8)
    """Nodes of each level of the tree; () for a chain of ``length``. The paper's are (4, 16, 16, 16, 16)."""

    def check(self, model: LanguageModel, options: Options) -> None:
        """Raise a ValueError for a model without a draft layer, or that cannot read a tree, or under a cache policy."""
        if getattr(model, "draft_layer", None) is None:
            raise ValueError(
                f"{type(model).__name__} has no draft layer: zoo.decoding.add_draft_layer(model) gives it one"
            )
        if options.cache is not None:
            raise ValueError("a draft layer reads all of the model's last cache: leave out cache=, or draft=")
        super().check(model, options)

    def begin(self, model: LanguageModel, options: Options) -> TreeDrafting:
        """Before the prompts."""
        return _LongSpecDrafting(self, model, options)


class _LongSpecDrafting(TreeDrafting[LongSpec]):
    """The layer's own attention has a state, and a tree beside it; its keys are of the embedding alone, so that what
    was said is simply read anew."""

    model: Any

    def read(self, prompts: Batch) -> Tensor:
        """The model reads the prompts, and the layer's own attention does."""
        options, (tokens, mask) = self.options, prompts
        self.attention, self.layer = last_attention(self.model), self.model.draft_layer
        logits, state = prefilled(self.model, prompts, options, options.num_samples)
        self.cache: Any = last_cache(state)
        self.verifier = self.remembering(state)
        self.own = self.layer.window_attention.init_state(len(tokens))
        chunk = options.prefill_chunk or tokens.shape[1]
        for start in range(0, tokens.shape[1], chunk):
            ids = None if mask is None else mask[:, start : start + chunk].long() - 1
            self.remember(tokens[:, start : start + chunk], ids)
        self.own.reorder(torch.arange(len(tokens), device=tokens.device).repeat_interleave(options.num_samples))
        return logits

    def first(self, token: Tensor) -> Tensor:
        """What was said is final."""
        logits = self.read_on(token, self.own)
        states, self.tree = branching(ModelState([self.own]))
        self.branch = states[0]
        return logits

    def guess(self, tokens: Tensor, parent: Tensor) -> Tensor:
        """The layer reads a level."""
        self.tree.grow(parent)
        return self.read_on(tokens, self.branch)

    def keep(self, tokens: Tensor, path: Tensor) -> None:
        """The layer's own attention reads what was said."""
        if tokens.shape[1]:
            self.remember(tokens, None)

    def read_on(self, tokens: Tensor, state: State) -> Tensor:
        """The layer's logits (B, n, vocab_size) after further tokens (B, n)."""
        x = self.model.enter(tokens)
        return self.model.read_out(self.layer(x, self.cache.keys(), None, self.attention, state))

    def remember(self, tokens: Tensor, ids: Tensor | None) -> None:
        """Keys and values of the newest tokens (B, n)."""
        x = self.layer.window_norm(self.model.enter(tokens))
        self.layer.window_attention.remember(x, self.own, seq_idx=ids)
