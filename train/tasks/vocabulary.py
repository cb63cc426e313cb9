"""A language model goes on to another text in a vocabulary of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from zoo.layers.options import require_at_least
from zoo.train.tasks.language import LanguageModeling
from zoo.train.vocabulary import BYTES, Rows, grow_vocabulary


class VocabularyAdaptation(LanguageModeling):
    """Language modelling by a model of bytes that is given the tokens of its data first, see
    `zoo.train.vocabulary.grow_vocabulary`; `zoo.train.callbacks.Stages` says what learns when.

    Args:
        model: of bytes, with weights; see `LanguageModeling`, which also has the other arguments.
        new_tokens: as many as the data's vocabulary has beyond bytes.
        rows: what the rows of new tokens begin with, see `grow_vocabulary`.

    Raises:
        ValueError: for a number below 1, or an unknown kind of rows; when fitting, for data without a vocabulary of so
            many tokens.

    Paper: Vo et al., "RedWhale", arXiv 2408.11294; stages and rows as others describe them.
    """

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        new_tokens: int = 256,
        rows: Rows = "pieces",
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, **kwargs)
        require_at_least(1, new_tokens=new_tokens)
        self.new_tokens = new_tokens
        self.rows: Rows = rows

    def sketch(self) -> nn.Module:
        """With the new tokens."""
        return _grown(super().sketch, [b"\0"] * self.new_tokens, self.rows)

    def configure_model(self) -> None:
        if self.model is None:
            self.build = partial(_grown, self.build, self._pieces(), self.rows)
        super().configure_model()

    def _pieces(self) -> Sequence[bytes]:
        data = getattr(self.trainer, "datamodule", None)
        pieces = getattr(getattr(data, "vocabulary", None), "pieces", ())
        if len(pieces) != self.new_tokens:
            raise ValueError(
                f"the data must have a vocabulary of {self.new_tokens} tokens beyond bytes, {type(data).__name__} has "
                f"{len(pieces)}: set new_tokens and merges alike"
            )
        return pieces


def _grown(build: Callable[[], Any], pieces: Sequence[bytes], rows: Rows) -> nn.Module:
    model = build()
    if model.config.vocab_size != BYTES + len(pieces):  # a saved one has them
        grow_vocabulary(model, pieces, rows)
    return model
