"""A ladder that begins with what matters of the model beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from torch import Tensor

from zoo.adapt.pruned import prune_into_ladder
from zoo.layers.options import require_at_least
from zoo.train.data import DataModule
from zoo.train.optim import unwrapped
from zoo.train.tasks import LanguageModeling


class PrunedLadder(Callback):
    """Before the first step the ladder of a model (`--adapter ladder`) gets weights pruned out of the model's, by the
    Fisher information of training samples, see `zoo.adapt.pruned.prune_into_ladder`.

    Args:
        samples: the first of the data's, the same in every process. A resumed run has done it.

    Raises:
        ValueError: too few samples asked for; when training starts, for a model without a ladder.
        TypeError: what is trained is no `LanguageModeling` on a `DataModule`.
    """

    def __init__(self, samples: int = 1024) -> None:
        require_at_least(1, samples=samples)
        self.samples, self.done = samples, False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune, once."""
        if self.done:
            return
        data = getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, LanguageModeling) or not isinstance(data, DataModule):
            raise TypeError(f"PrunedLadder takes a LanguageModeling on a DataModule, got {type(pl_module).__name__}")
        prune_into_ladder(unwrapped(pl_module.trained), self._batches(data, pl_module.device))
        if pl_module.average is not None:  # which was made before
            pl_module.average.load_state_dict(unwrapped(pl_module.trained).state_dict())
        self.done = True

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.done = state_dict["done"]

    def _batches(self, data: DataModule, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        source = data.sources["train"]
        for index in range(min(self.samples, len(source))):
            tokens, labels = source.fetch(torch.tensor([index]), 0)
            yield tokens.to(device), labels.to(device)
