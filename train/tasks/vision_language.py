"""Learning to say what is asked about images."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.train.tasks.base import Task
from zoo.train.tasks.metrics import Mean

Batch = tuple[Tensor, dict[str, Tensor]]
IGNORED = -100


class VisionLanguage(Task):
    """Cross-entropy of answers; batches are `(images (I, C, H, W), {"tokens": (B, T), "labels": (B, T)})`.

    Tokens have places for the features of the images, and labels are -100 but at the answers. Logs
    `{train,val,test}/loss`, the mean over scored tokens, and `{val,test}/accuracy`, the share of texts all of whose
    scored tokens are the likeliest, so that the model alone, asked for its likeliest text, says that answer.

    Args:
        model: see `Task`, which also has the other arguments; a `zoo.vision_language.Llava`.
    """

    unit = "images"

    def __init__(self, model: str | nn.Module, model_args: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(model, model_args, **kwargs)
        self.means = nn.ModuleDict({name: Mean() for name in ("loss", "accuracy")})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, text = batch
        return self.log_training(self.trained(images, text["tokens"], labels=text["labels"]))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The logits."""
        images, text = batch
        return self(images, text["tokens"])

    def _evaluate(self, batch: Batch, split: str) -> None:
        images, text = batch
        losses, right = answered(self.evaluated(images, text["tokens"]), text["labels"])
        for name, value in {"loss": losses, "accuracy": right.float()}.items():
            mean = cast(Mean, self.means[name])
            mean.update(value)
            self.log(f"{split}/{name}", mean, on_epoch=True, prog_bar=True)


def answered(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits (B, T, V) and labels (B, T): the loss of every scored token, and which texts are right, (B,)."""
    wanted, found = labels[:, 1:], logits[:, :-1]
    scored = wanted != IGNORED
    losses = F.cross_entropy(found[scored].float(), wanted[scored], reduction="none")
    return losses, torch.where(scored, found.argmax(-1) == wanted, True).all(1)
