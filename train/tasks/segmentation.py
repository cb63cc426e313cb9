"""Segmentation into masks that may overlap."""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.train.tasks.base import Task
from zoo.train.tasks.metrics import Mean

Batch = tuple[Tensor, Tensor]


class Segmentation(Task):
    """Binary cross-entropy and soft Dice over masks; batches are `(inputs (B, C, ...), masks (B, K, ...))`.

    Masks are float zeros and ones, the model's logits have their shape, a voxel may be in several masks. The loss is

        mean binary cross-entropy + 1 - mean soft Dice over samples and masks,  both of sigmoid(logits)

    Logs `{train,val,test}/loss` and `{val,test}/dice`, the mean over samples and masks of the Dice coefficient of the
    voxels whose probability is above one half.

    Args:
        model: see `Task`, which also has the other arguments.
    """

    unit = "images"

    def __init__(self, model: str | nn.Module, model_args: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(model, model_args, **kwargs)
        self.means = nn.ModuleDict({name: Mean() for name in ("loss", "dice")})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, masks = batch
        return self.log_training(segmentation_loss(self.trained(inputs).float(), masks).mean())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, split: str) -> None:
        inputs, masks = batch
        logits = self.evaluated(inputs).float()
        values = {"loss": segmentation_loss(logits, masks), "dice": dice((logits > 0).float(), masks)}
        for name, value in values.items():
            mean = cast(Mean, self.means[name])
            mean.update(value)
            self.log(f"{split}/{name}", mean, on_epoch=True, prog_bar=True)


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy + 1 - soft Dice of each sample and mask, (B, K, ...) twice -> (B, K)."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").flatten(2).mean(2)
    return cross_entropy + 1 - dice(logits.sigmoid(), masks)


def dice(predicted: Tensor, masks: Tensor) -> Tensor:
    """2 |P and M| / (|P| + |M|) of each sample and mask, (B, K, ...) in [0, 1] twice -> (B, K); 1 where both are empty.

    Paper: Milletari et al., "V-Net", arXiv:1606.04797 (there with squares in the denominator).
    """
    shared, total = (predicted * masks).flatten(2).sum(2), (predicted + masks).flatten(2).sum(2)
    return (2 * shared + 1e-6) / (total + 1e-6)
