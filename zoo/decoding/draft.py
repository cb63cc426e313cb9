"""What a draft is, as an option of ``zoo.generate``, and what is counted of it."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.language.base import LanguageModel
from zoo.registry import nearest

if TYPE_CHECKING:
    from zoo.decoding.drafting import Rounds
    from zoo.generate.options import Options


@dataclasses.dataclass
class Counts:
    """What came of drafts, of rows that had not ended.

    Attributes:
        proposed: drafted tokens.
        accepted: drafted tokens that were said.
        tokens: tokens that were said after the prompts and their first one.
        passes: readings of the whole model that gave them.
        blocks: calls of the model's blocks, where these draft themselves, whatever the rows.
    """

    proposed: int = 0
    accepted: int = 0
    tokens: int = 0
    passes: int = 0
    blocks: int = 0

    def __str__(self) -> str:
        share, pace = self.accepted / max(1, self.proposed), self.tokens / max(1, self.passes)
        return f"{self.accepted} of {self.proposed} drafted tokens accepted ({share:.1%}), {pace:.2f} tokens a pass"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draft(ABC):
    """A way to draft. A subclass names itself for ``draft="name"`` where it needs no other model.

    Raises:
        ValueError: for a length below 1, or a confidence outside [0, 1].
    """

    named: ClassVar[dict[str, type[Draft]]] = {}

    length: int = 4
    """Tokens that are drafted before the model reads them."""
    confidence: float = 0.0
    """A draft ends before a token whose likeliest choice is less likely than this in every row."""
    counts: Counts = dataclasses.field(default_factory=Counts, compare=False, repr=False)
    """What came of all drafts so far."""

    def __init_subclass__(cls, name: str | None = None, **options: Any):
        super().__init_subclass__(**options)
        if name is not None:
            Draft.named[name] = cls

    def __post_init__(self):
        if not isinstance(self.length, int) or self.length < 1:
            raise ValueError(f"length, the tokens of a draft, must be an integer of at least 1, got {self.length!r}")
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence is a probability, in [0, 1], got {self.confidence}")

    @abstractmethod
    def check(self, model: LanguageModel, options: Options) -> None:
        """Raise a ValueError where it cannot draft for a model, or under other options."""

    @abstractmethod
    def begin(self, model: LanguageModel, options: Options) -> Rounds:
        """Before the prompts."""


def as_draft(draft: Any) -> Draft:
    """A draft as it is, of a model one with working defaults, or of a name.

    Raises:
        ValueError: for anything else.
    """
    from zoo.decoding.model import ModelDraft  # which is one of these

    if isinstance(draft, LanguageModel):
        return ModelDraft(draft)
    if isinstance(draft, str):
        if draft not in Draft.named:
            raise ValueError(
                f"there is no draft {draft!r}{nearest(draft, Draft.named)}; named: {', '.join(Draft.named)}"
            )
        return Draft.named[draft]()
    if not isinstance(draft, Draft):
        raise ValueError(f"a draft is a language model or one of zoo.decoding, got {type(draft).__name__}")
    return draft
