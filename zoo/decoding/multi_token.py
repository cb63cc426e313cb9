"""A model's own modules of multi-token prediction as the draft."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from zoo.decoding.draft import Draft
from zoo.decoding.drafting import Drafting
from zoo.generate.options import Options
from zoo.generate.prompts import Batch
from zoo.language.base import LanguageModel
from zoo.language.ids import check_ids
from zoo.layers.linear import capped


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiToken(Draft, name="mtp"):
    """The modules that a DeepSeek-V3 was trained with beside its head draft a token each.

    Module k reads the hidden states of the one before it and the tokens k later, the last of which are drafted; it
    remembers what it has read of the text itself. ``length`` counts up to the number of modules.

    Paper: "DeepSeek-V3 Technical Report", arXiv 2412.19437, sections 2.2 and 5.4.3.
    """

    def check(self, model: LanguageModel, options: Options) -> None:
        """Raise a ValueError for a model without such modules."""
        if not getattr(model, "mtp", None):
            raise ValueError(
                f"{type(model).__name__} has no modules of multi-token prediction to draft with: a DeepSeek has, of "
                "mtp_depth above 0"
            )

    def begin(self, model: LanguageModel, options: Options) -> Drafting:
        """Before the prompts."""
        return _MultiTokenDrafting(self, model, options)


class _MultiTokenDrafting(Drafting[MultiToken]):
    """The text is known up to the token n + 1, and read up to n, of which there are hidden states.

    The output of module k, from 0 on, at a position t is final where the token t + k + 1, which it reads, is known.
    The k last ones are not, as they read drafted tokens: they are computed anew in the next draft.
    """

    model: Any

    def most(self) -> int:
        """A token a module."""
        return min(self.draft.length, len(self.model.mtp))

    def read(self, prompts: Batch) -> Tensor:
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
        self.state.commit()
        self.states = [module.block.mixer.init_state(rows, reserved) for module in self.model.mtp]
        self.text, self.ahead = tokens[index], []  # read by the model; and what follows, drafted but for the first
        self.ids = None if ids is None else ids[index]
        read = torch.cat(hidden, 1)[index]
        self.inputs = [read] + [read[:, :0]] * len(self.states)  # final ones, of outputs of each module that are not
        return self._logits(read[:, -1:])[:, -1]

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
        return self._logits(hidden[:, -1:])[:, -1]

    def verify(self, tokens: Tensor) -> Tensor:
        """The model reads on."""
        self.verified = tokens
        self.hidden = self.model.forward_norm(self.model.forward_residual(tokens, self.state))
        return self._logits(self.hidden)

    def keep(self, count: int) -> None:
        """The model forgets what was not said; its hidden states are for the first module to read."""
        self.state.commit(count)
        self.text, self.ahead = torch.cat([self.text, self.verified[:, :count]], 1), []
        self.inputs[0] = torch.cat([self.inputs[0], self.hidden[:, :count]], 1)
        if self.ids is not None:
            self.ids = torch.cat([self.ids, torch.zeros_like(self.verified[:, :count])], 1)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Of hidden states as the head reads them."""
        return capped(self.model.head(hidden), self.model.softcap)
