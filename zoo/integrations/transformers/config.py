"""A saved model's configuration as transformers reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig


class ZooConfig(PreTrainedConfig):
    """The ``config.json`` of ``zoo.save_model``: a model's name and the fields of its configuration."""

    model_type = "zoo"

    architecture: str = ""
    config: dict[str, Any] | None = None
    low_ranks: dict[str, int] | None = None
    changes: list[dict[str, Any]] | None = None

    def __post_init__(self, **kwargs: Any):
        classes = self.fields.get("num_classes")
        if classes and self.id2label is None and "num_labels" not in kwargs:
            names = self.fields.get("label_names") or [f"LABEL_{index}" for index in range(classes)]
            self.id2label = dict(enumerate(names))
            self.label2id = {name: index for index, name in self.id2label.items()}
        super().__post_init__(**kwargs)

    @property
    def fields(self) -> Mapping[str, Any]:
        """Those of the model's configuration."""
        return self.config or {}

    @property
    def vocab_size(self) -> int | None:
        """Tokens the model knows."""
        return self.fields.get("vocab_size")

    @property
    def hidden_size(self) -> int | None:
        """Model width."""
        return self.fields.get("dim")

    @property
    def num_hidden_layers(self) -> int | None:
        """Blocks."""
        return self.fields.get("depth")

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the head shares the embedding's weight."""
        return bool(self.fields.get("tie_embeddings", False))
