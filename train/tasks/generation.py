"""Generative modelling of images by their likelihood."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.train.tasks.base import Task
from zoo.train.tasks.metrics import Mean

Batch = tuple[Tensor, Tensor]


class ImageGeneration(Task):
    """Negative log likelihood; batches are `(images (B, C, ...), classes)`, images int64 levels.

    Logs `{train,val,test}/loss` in nats a dimension, a dimension being one channel of one pixel, and
    `{val,test}/bits_per_dim`, the same over ln 2: the mean over all images of the split, each counted once.

    Args:
        model: see `Task`, which also has the other arguments; called as `model(images, labels=images)`.
        random_channel: score one channel of each image in a training step, drawn anew, as the authors of the Axial
            Transformer do (arXiv:1912.12180); otherwise all of them. Evaluation scores all.
        conditional: the model is told the classes, `model(images, classes=classes)`.

    Raises:
        ValueError: for random_channel with conditional, which no model has.
    """

    unit = "images"

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        random_channel: bool = False,
        conditional: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, **kwargs)
        if random_channel and conditional:
            raise ValueError("random_channel scores a channel of an image without a class: leave one of them out")
        self.random_channel, self.conditional = random_channel, conditional
        self.means = nn.ModuleDict({name: Mean() for name in ("loss", "bits_per_dim")})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images = batch[0]
        if not self.random_channel:
            return self.log_training(self.trained(images, labels=images, **self._given(batch)))
        channels = torch.randint(images.shape[1], images.shape[:1], device=images.device)
        return self.log_training(self.trained(images, labels=images, channels=channels))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _given(self, batch: Batch) -> dict[str, Tensor]:
        return {"classes": batch[1]} if self.conditional else {}

    def _evaluate(self, batch: Batch, split: str) -> None:
        logits = self.evaluated(batch[0], **self._given(batch))
        nats = F.cross_entropy(logits.movedim(-1, 1).float(), batch[0], reduction="none")
        for name, value in {"loss": nats, "bits_per_dim": nats / math.log(2)}.items():
            mean = cast(Mean, self.means[name])
            mean.update(value)
            self.log(f"{split}/{name}", mean, on_epoch=True, prog_bar=True)
