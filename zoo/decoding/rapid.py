"""A draft that reads of a long prompt only what belongs to its end."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from zoo.decoding.accept import accept, draw
from zoo.decoding.drafting import Proposal, wide
from zoo.decoding.model import ModelDraft, ModelDrafting
from zoo.decoding.retrieval import SCORERS, shortened
from zoo.generate.options import Options
from zoo.generate.prompts import Batch, batched
from zoo.language.base import LanguageModel


def transferred(target: Tensor, draft: Tensor, eta: float, share: float = 0.1) -> Tensor:
    r"""The model's law p (B, vocab_size) moved towards the draft's q.

    .. math::
        \hat p = \mathrm{softmax}(\ln p - \eta\, M \odot (p - q)), \quad M = 1[q \ge \mathrm{share} \cdot \max q]

    It is a step of size eta down the gradient of the cross-entropy with q, by the logits, where q is large.

    Paper: Chen et al., "RAPID", arXiv 2502.20330, section 3.2.
    """
    mask = draft >= share * draft.amax(-1, keepdim=True)
    return (target.log() - eta * mask * (target - draft)).softmax(-1)


@dataclasses.dataclass(frozen=True)
class Rapid(ModelDraft):
    """RAPID: a model that reads a shortened prompt drafts for one that reads it all; it may be the same model.

    Of a prompt beyond ``budget`` tokens the draft reads its end and the chunks most like that, in their order. Both
    then read what is said.

    At ``eta`` 0 nothing is lost: the text at temperature 0 is the model's own, and otherwise its law. Above 0 knowledge
    of the draft is transferred, and that is *not* the model's law, nor any other that has a name: a drafted token is
    accepted with min(1, p' / q), where p' is ``transferred``; one that is refused makes way for one of
    max(p - q, p - p', 0), and after a draft that was accepted whole comes one of p. At temperature 0 a drafted token is
    accepted where p' has it as the likeliest, and else the model's own is said.

    Paper: Chen et al., "Long-Context Inference with Retrieval-Augmented Speculative Decoding", arXiv 2502.20330.
    """

    length: int = dataclasses.field(default=10, kw_only=True)
    confidence: float = dataclasses.field(default=0.1, kw_only=True)
    budget: int = dataclasses.field(default=4096, kw_only=True)
    """Tokens of a prompt that the draft reads."""
    chunk: int = dataclasses.field(default=128, kw_only=True)
    """Tokens of a chunk."""
    query: int = dataclasses.field(default=128, kw_only=True)
    """Tokens of the prompt's end, which chunks are compared with."""
    scorer: str = dataclasses.field(default="lexical", kw_only=True)
    """How: "lexical", by runs of tokens that both have, or "embedding", by the draft's embeddings."""
    ngram: int = dataclasses.field(default=4, kw_only=True)
    """Tokens of such a run."""
    eta: float = dataclasses.field(default=0.0, kw_only=True)
    """How much of the draft's knowledge is transferred; the paper's are 10 to 50."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("budget", "chunk", "query", "ngram"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {getattr(self, name)!r}")
        if self.scorer not in SCORERS:
            raise ValueError(f"scorer must be one of {', '.join(SCORERS)}, got {self.scorer!r}")
        if not self.eta >= 0:
            raise ValueError(f"eta must not be negative, got {self.eta}")
        if self.widths:
            raise ValueError(f"RAPID drafts chains: leave out widths={self.widths}")

    def begin(self, model: LanguageModel, options: Options) -> ModelDrafting:
        """Before the prompts."""
        return _RapidDrafting(self, model, options)


class _RapidDrafting(ModelDrafting):
    draft: Rapid  # pyright: ignore[reportIncompatibleVariableOverride]

    def shortened(self, prompts: Batch) -> Batch:
        """The chunks of each row, and its end."""
        draft = self.draft
        rows = [
            shortened(
                draft.model, row, budget=draft.budget, chunk=draft.chunk, query=draft.query, scorer=draft.scorer,
                ngram=draft.ngram,
            )
            for row in prompts.rows()
        ]  # fmt: skip
        return batched(rows, None, prompts.tokens.device)

    def guess(self, token: Tensor) -> Tensor:
        """The draft reads on; what it thinks is remembered."""
        logits = super().guess(token)
        self.thoughts.append(logits)
        return logits

    def verify(self, tokens: Tensor) -> Tensor:
        """The model reads on."""
        self.thought, self.thoughts = self.thoughts, []
        return super().verify(tokens)

    def read(self, prompts: Batch) -> Tensor:
        """Both read the prompts."""
        self.thoughts: list[Tensor] = []
        return super().read(prompts)

    def settled(self, index: int, row: Tensor, law: Tensor, proposal: Proposal) -> tuple[Tensor, Tensor]:
        """With a part of the draft's knowledge, where that is asked for."""
        draft, token, q, generator = self.draft, proposal.tokens[index], proposal.laws[index], self.options.generator
        if draft.eta == 0:
            return accept(law, q, token, generator)
        if self.options.temperature > 0:
            hat = transferred(law, q, draft.eta)
        else:
            soft = transferred(row.softmax(-1), wide(self.thought[index]).softmax(-1), draft.eta)
            hat = torch.nn.functional.one_hot(soft.argmax(-1), law.shape[-1]).to(law.dtype)
        chances, drawn = (one.gather(1, token[:, None])[:, 0] for one in (hat, q))
        accepted = torch.bernoulli((chances / drawn).clamp(max=1), generator=generator).bool()
        rest = torch.maximum(law - q, law - hat).clamp(min=0)
        rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, law)
        return torch.where(accepted, token, draw(rest, generator)), accepted
