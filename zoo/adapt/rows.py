"""Textual inversion: of an embedding a few rows learn."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from zoo.adapt.method import Adapter
from zoo.layers.adapt import PartialEmbedding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows(Adapter, kind="rows"):
    """Of the embeddings the vectors of a few ids learn, such as that of a class or a word which is to mean something
    new; the rest of the model may be compressed (``zoo.quantize``), and is frozen.

    Paper: Gal et al., "An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion",
    arXiv 2208.01618.
    """

    adds = ("rows", "index")

    rows: tuple[int, ...] = (0,)
    """Ids that learn."""

    def fits(self, module: nn.Module) -> bool:
        """Plain embeddings."""
        return type(module) is nn.Embedding

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """The embeddings of which some rows learn."""
        index = torch.tensor(sorted(set(self.rows)), dtype=torch.int64, device="cpu")
        return {name: PartialEmbedding(layer, index) for name, layer in self.chosen(model).items()}

    def merged(self, module: Any, into: str | None = None) -> nn.Module:
        """The table with these rows in it."""
        return module.plain()
