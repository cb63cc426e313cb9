"""Text in a vocabulary that is grown on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.train.data.text import SourceCodeDataModule
from zoo.train.vocabulary import BYTES, Merges


class GrownSourceDataModule(SourceCodeDataModule):
    """The source of Python's standard library, in bytes and `merges` pieces that are learnt from what trains: for a
    model of bytes that adapts to it (`zoo.train.tasks.VocabularyAdaptation`).

    Args:
        merges: new tokens.
        kwargs: see `SourceCodeDataModule`.
    """

    def __init__(self, merges: int = 256, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.merges = merges
        self._vocabulary: Merges | None = None

    @property
    def vocabulary(self) -> Merges:
        """Learnt when it is first asked for."""
        if self._vocabulary is None:
            self._vocabulary = Merges.learnt(self.documents("train"), self.merges)
        return self._vocabulary

    @property
    def vocab_size(self) -> int:
        return BYTES + self.merges

    def encode(self, text: str) -> Tensor:
        return torch.tensor(self.vocabulary.encode(text), dtype=torch.int32)

    def save_tokenizer(self, folder: Path) -> None:
        self.vocabulary.save(folder)
