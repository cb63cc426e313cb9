"""A model's own modules of multi-token prediction as the draft."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.decoding.drafting import Drafting, Rounds
from zoo.decoding.tree import TreeDraft, TreeDrafting, TreeReader
from zoo.generate.options import Options
from zoo.generate.prompts import Batch
from zoo.language.base import LanguageModel
from zoo.language.ids import check_ids
from zoo.layers import ModelState
from zoo.layers.attention.tree import branching
from zoo.layers.linear import capped


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiToken(TreeDraft, name="mtp"):
    """The modules that a DeepSeek-V3 was trained with beside its head draft a token each, or a level of a tree.

    Module k reads the hidden states of the one before it and the tokens k later, the last of which are drafted; it
    remembers what it has read of the text itself. ``length`` and ``widths`` count up to the number of modules.

    Paper: "DeepSeek-V3 Technical Report", arXiv 2412.19437, sections 2.2 and 5.4.3.
    """

    def check(self, model: LanguageModel, options: Options) -> None:
        """Raise a ValueError for a model without such modules, or that cannot read a tree."""
        if not getattr(model, "mtp", None):
            raise ValueError(
                f"{type(model).__name__} has no modules of multi-token prediction to draft with: a DeepSeek has, of "
                "mtp_depth above 0"
            )
        super().check(model, options)

    def begin(self, model: LanguageModel, options: Options) -> Rounds:
        """Before the prompts."""
        levels = self.levels(model, options)
        if max(levels) > 1:
            return _MultiTokenTrees(self, model, options)
        return _MultiTokenDrafting(dataclasses.replace(self, widths=(), length=len(levels)), model, options)


class _Modules(Rounds[MultiToken]):
    """The text is known up to the token n + 1, and read up to n, of which there are hidden states.

    The output of module k, from 0 on, at a position t is final where the token t + k + 1, which it reads, is known.
    The k last ones are not, as they read drafted tokens: they are computed anew in the next draft.
    """

    model: Any

    def begun(self, prompts: Batch) -> Tensor:
        """The model reads the prompts; its modules do with the first draft, as they need a token more."""
        options, (tokens, mask) = self.options, prompts
        check_ids("tokens", tokens, 0, self.model.config.vocab_size)
        batch, length = tokens.shape
        reserved, rows = length + options.max_new_tokens, batch * options.num_samples
        self.state = self.model.init_state(batch, reserved, cache=options.cache)
        ids = None if mask is None else mask.long() - 1
        hidden = []
        for start in range(0, length, options.prefill_chunk or length):
            part = slice(start, start + (options.prefill_chunk or length))
            x = self.model.forward_residual(tokens[:, part], self.state, None if ids is None else ids[:, part])
            hidden.append(self.model.forward_norm(x))
        index = torch.arange(batch, device=tokens.device).repeat_interleave(options.num_samples)
        self.state.reorder(index)
        self.states = [module.block.mixer.init_state(rows, reserved) for module in self.model.mtp]
        self.text = tokens[index]  # read by the model
        self.ids = None if ids is None else ids[index]
        read = torch.cat(hidden, 1)[index]
        self.inputs = [read] + [read[:, :0]] * len(self.states)  # final ones, of outputs of each module that are not
        return self.logits(read[:, -1:])[:, -1]

    def read_on(self, tokens: Tensor, hidden: Tensor) -> None:
        """The text goes on by tokens (B, n), which the model has read: its hidden states are for the first module."""
        self.text, self.inputs[0] = torch.cat([self.text, tokens], 1), torch.cat([self.inputs[0], hidden], 1)
        if self.ids is not None:
            self.ids = torch.cat([self.ids, torch.zeros_like(tokens)], 1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Of hidden states as the head reads them."""
        return capped(self.model.head(hidden), self.model.softcap)


class _MultiTokenDrafting(_Modules, Drafting[MultiToken]):
    """Chains."""

    def most(self) -> int:
        """A token a module."""
        return min(self.draft.length, len(self.model.mtp))

    def read(self, prompts: Batch) -> Tensor:
        """The model reads the prompts."""
        logits = self.begun(prompts)
        self.state.commit()
        self.ahead: list[Tensor] = []  # what follows what was read, drafted but for the first
        return logits

    def guess(self, token: Tensor) -> Tensor:
        """The next module reads what is new, and what it has read of drafts."""
        k = len(self.ahead)
        self.ahead.append(token)
        x = torch.cat([self.inputs[k], self.drafted], 1) if k else self.inputs[0]
        length, text = x.shape[1], torch.cat([self.text, *self.ahead], 1)
        ids = None if self.ids is None else self.ids[:, -length:]
        hidden = self.model.mtp[k](x, self.model.embed(text[:, -length:]), ids, self.states[k])
        final = max(0, length - k)
        self.states[k].commit(final)
        self.inputs[k] = self.inputs[k][:, final:]
        self.inputs[k + 1] = torch.cat([self.inputs[k + 1], hidden[:, :final]], 1)
        self.drafted = hidden[:, final:]
        return self.logits(hidden[:, -1:])[:, -1]

    def verify(self, tokens: Tensor) -> Tensor:
        """The model reads on."""
        self.verified = tokens
        self.hidden = self.model.forward_norm(self.model.forward_residual(tokens, self.state))
        return self.logits(self.hidden)

    def keep(self, count: int) -> None:
        """The model forgets what was not said."""
        self.state.commit(count)
        self.ahead = []
        self.read_on(self.verified[:, :count], self.hidden[:, :count])


class _MultiTokenTrees(_Modules, TreeDrafting[MultiToken]):
    """Trees. Module k stands the nodes of the levels 1 to k behind what is final of it, as they read drafted tokens;
    what it makes of a node is what the next module reads of its children."""

    def __init__(self, draft: MultiToken, model: LanguageModel, options: Options):
        super().__init__(draft, model, options)
        self.widths = self.widths[: len(self.model.mtp)]

    def read(self, prompts: Batch) -> Tensor:
        """The model reads the prompts."""
        logits = self.begun(prompts)
        self.verifier = _HiddenReader(self.model, self.state)
        return logits

    def first(self, token: Tensor) -> Tensor:
        """The first module reads what is new."""
        self.known = torch.cat([self.text, token], 1)
        self.read_final(0)
        self.nodes, self.parent, self.level = token[:, :0], token[:, :0], token[:0, 0]
        self.hidden = self.inputs[1][:, :0]
        return self.logits(self.inputs[1][:, -1:])

    def guess(self, tokens: Tensor, parent: Tensor) -> Tensor:
        """The next module reads what is new, and all nodes."""
        k, count = int(self.level[-1:].sum()) + 1, tokens.shape[1]
        self.nodes, self.parent = torch.cat([self.nodes, tokens], 1), torch.cat([self.parent, parent], 1)
        self.level = F.pad(self.level, (0, count), value=k)
        before = F.pad(self.inputs[k], (0, 0, 1, 0))[:, -1:]
        self.read_final(k)
        x = torch.cat([before, self.hidden], 1).take_along_dim(self.parent.clamp(min=-1)[..., None] + 1, 1)
        (state,), tree = branching(ModelState([self.states[k]]))
        tree.grow(self.parent.masked_fill(self.level <= k - self.last, -1))
        self.hidden = self.model.mtp[k](x, self.model.embed(self.nodes), None, state)
        return self.logits(self.hidden[:, -count:])

    def keep(self, tokens: Tensor, path: Tensor) -> None:
        """The modules read it with the next draft."""
        self.read_on(*self.verifier.kept)  # type: ignore[union-attr]

    @property
    def last(self) -> Tensor:
        """n (B, 1): the nodes of module k at positions before the first, in texts shorter than it looks ahead, are
        none."""
        return (torch.ones_like(self.text) if self.ids is None else self.ids + 1).sum(1, keepdim=True) - 1

    def read_final(self, k: int) -> None:
        """Module k reads what is final of the one before it, but for the last, which a drafted token follows."""
        x = self.inputs[k][:, : self.inputs[k].shape[1] - (k > 0)]
        length, end = x.shape[1], self.text.shape[1] - k
        if length:
            ids = None if self.ids is None else self.ids[:, end - length : end]
            hidden = self.model.mtp[k](x, self.model.embed(self.known[:, -length:]), ids, self.states[k])
            self.inputs[k] = self.inputs[k][:, length:]
            self.inputs[k + 1] = torch.cat([self.inputs[k + 1], hidden], 1)


class _HiddenReader(TreeReader):
    """A reader of trees, each of them at once, that remembers the hidden states.

    Attributes:
        kept: the tokens (B, n) that were kept last, and their hidden states (B, n, dim).
    """

    kept: tuple[Tensor, Tensor]
    model: Any

    def __call__(self, tokens: Tensor, parent: Tensor) -> Tensor:
        """See ``TreeReader``."""
        self.tree.grow(parent)
        self.read = tokens, self.model.forward_norm(self.model.forward_residual(tokens, self.branches))
        return capped(self.model.head(self.read[1]), self.model.softcap)

    def keep(self, path: Tensor) -> None:
        """See ``TreeReader``."""
        tokens, hidden = self.read
        self.kept = tokens.gather(1, path), hidden.take_along_dim(path[..., None], 1)
        super().keep(path)
