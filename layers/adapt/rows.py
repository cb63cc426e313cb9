"""An embedding of which some rows learn."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.adapt.marks import device_of
from zoo.layers.options import require_at_least


class PartialEmbedding(nn.Module):
    """Vectors of ids, where those of some ids learn and the table is frozen.

    At first they are what they were, and ``plain()`` looks up the same, bit for bit, whatever they have learnt.

    Args:
        layer: whose table it takes over, frozen.
        index: ids (r,) that learn, int64.

    Raises:
        ValueError: for no id, or one that the table does not have.
    """

    index: Tensor

    def __init__(self, layer: nn.Embedding, index: Tensor):
        super().__init__()
        require_at_least(1, rows=len(index))
        if not 0 <= int(index.min()) <= int(index.max()) < layer.num_embeddings:
            raise ValueError(f"rows must be in [0, {layer.num_embeddings}), got {index.tolist()}")
        self.num_embeddings, self.embedding_dim = layer.num_embeddings, layer.embedding_dim
        self.weight = layer.weight
        self.register_buffer("index", index.to(device_of(layer.weight)))
        self.rows = nn.Parameter(layer.weight.detach()[index].clone())
        self.weight.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (...) -> (..., embedding_dim)."""
        hit = ids[..., None] == self.index  # (..., r)
        learnt = F.embedding(hit.to(torch.uint8).argmax(-1), self.rows)
        return torch.where(hit.any(-1, keepdim=True), learnt, F.embedding(ids, self.weight))

    @torch.no_grad()
    def plain(self) -> nn.Embedding:
        """The table with the rows in it."""
        return nn.Embedding.from_pretrained(self.weight.index_copy(0, self.index, self.rows), freeze=False)
