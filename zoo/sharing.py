"""Models tuned from one another, in one store: what they share is kept once, on the disk and in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.adapt import own_names
from zoo.changes import described_changes, rebuilding
from zoo.checkpoints.blocks import BlockStore
from zoo.layers.adapt import before
from zoo.loading import build_around, tied
from zoo.quantize.files import described_records
from zoo.recognition import describe_model
from zoo.registry import lookup
from zoo.saving import check_rebuilds, described


class SharedModels:
    """A store of models of ``create_model``.

    >>> store = zoo.SharedModels("store")
    >>> store.add("base", model)
    >>> store.add("legal", tuned)  # writes what was tuned, and a list
    >>> store.load("base"), store.load("legal")  # whose equal blocks are the same tensors

    What was tuned by ``zoo.adapt`` shares the whole of its base.

    Args:
        folder: see ``BlockStore``, which is ``blocks`` here.
    """

    def __init__(self, folder: str | Path):
        self.blocks = BlockStore(folder)

    def add(self, name: str, model: nn.Module, *, similar: float | None = None) -> int:
        """Write a model.

        Args:
            name, similar: see ``BlockStore.add``.
            model: of ``create_model``.

        Returns:
            The bytes by which the store has grown.

        Raises:
            ValueError: for a model that ``create_model`` could not build again.
        """
        known: Any = model
        if not isinstance(getattr(model, "config_name", None), str):
            raise ValueError(f"a store takes a model of create_model, got {type(model).__name__}")
        entry, done = lookup(known.config_name), described_changes(model) | described_records(model)
        check_rebuilds(model, rebuilding(entry.model_class, done), known.config, entry.name)
        aliases, size = tied(model), self.blocks.nbytes
        own = set(own_names(model))
        tensors = {key: tensor for key, tensor in model.state_dict().items() if key not in aliases}
        config = described(entry, known.config, tensors) | done
        named = {key if key in own else before(model, key): tensor for key, tensor in tensors.items()}
        self.blocks.add(name, named, config, similar, own)
        return self.blocks.nbytes - size

    def load(self, name: str) -> nn.Module:
        """The model, frozen and in eval mode; its tensors are those of the store's other models.

        Raises:
            FileNotFoundError: for a name that the store has not.
        """
        tensors, content = self.blocks.read(name)
        entry, config = describe_model(content, tensors, str(self.blocks.folder / name))
        build = rebuilding(entry.model_class, content)
        with torch.device("meta"):
            sketch = build(config)
        own = set(own_names(sketch))
        names = {before(sketch, key): key for key in sketch.state_dict() if key not in own}
        tensors = {names.get(key, key): tensor for key, tensor in tensors.items()}
        dtype = getattr(torch, str(content.get("dtype", "float32")))
        model: Any = build_around(tensors, build, config, name, device=torch.device("cpu"), dtype=dtype)
        model.config_name, model.source_folder = entry.name, None
        return model.requires_grad_(False).eval()
