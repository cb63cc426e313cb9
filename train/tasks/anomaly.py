"""Detection of anomalies by how badly a model that knows the normal case reconstructs them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision
from torchmetrics.utilities.data import dim_zero_cat

from zoo.train.tasks.base import Task
from zoo.train.tasks.metrics import Mean

Batch = tuple[Tensor, Tensor]


class _OfBoth(Metric):
    """NaN, and no warning, where all moments are of one kind, as in the few batches that are tried before training."""

    target: list[Tensor]

    def compute(self) -> Tensor:
        found = dim_zero_cat(self.target)
        return super().compute() if 0 < found.sum() < found.numel() else torch.tensor(torch.nan, device=found.device)


class Separation(_OfBoth, BinaryAUROC):
    """Area under the receiver operating characteristic."""


class Precision(_OfBoth, BinaryAveragePrecision):
    """Area under the precision-recall curve."""


class AnomalyDetection(Task):
    """Squared error of windows; batches are `(windows (B, T, C), anomalous (B, C))`, bool, at the last moment.

    The model's side losses are added, see `Task`. The score of a moment is the mean over the channels of the squared
    errors of the last moment of the window that ends there. Logs `{train,val,test}/loss` and, of the scores over all
    moments, `{val,test}/auroc` and `auprc`, the areas under the receiver operating characteristic and the
    precision-recall curve, without adjusting for points of one anomaly, which flatters random scores; and `diagnosis`,
    how often the channel with the largest error is anomalous where one is.

    Args:
        model: see `Task`, which also has the other arguments.
    """

    unit = "windows"

    def __init__(self, model: str | nn.Module, model_args: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(model, model_args, **kwargs)
        self.loss, self.diagnosis = Mean(), Mean()
        self.auroc, self.auprc = Separation(), Precision()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        windows, _ = batch
        return self.log_training((self.trained(windows).float() - windows).square().mean())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, split: str) -> None:
        windows, anomalous = batch
        errors = (self.evaluated(windows).float() - windows).square()
        scores, is_anomalous = errors[:, -1], anomalous.any(1)
        worst = anomalous.gather(1, scores.argmax(1, keepdim=True))[is_anomalous]
        self.loss.update(errors)
        self.diagnosis.update(worst)
        for metric in (self.auroc, self.auprc):
            metric.update(ranked(scores), is_anomalous.long())
        for name in ("loss", "auroc", "auprc", "diagnosis"):
            self.log(f"{split}/{name}", getattr(self, name), on_epoch=True, prog_bar=True)


@torch.no_grad()
def separation(model: nn.Module, windows: Tensor, anomalous: Tensor) -> float:
    """Area under the receiver operating characteristic of a model's scores, see `AnomalyDetection`."""
    scores = (model(windows) - windows).square()[:, -1]
    return BinaryAUROC()(ranked(scores), anomalous.any(1).long()).item()


def ranked(errors: Tensor) -> Tensor:
    """Errors (B, C) of moments to scores (B,) in [0, 1) of the same order as their means: torchmetrics takes others for
    logits, batch by batch."""
    means = errors.mean(1)
    return means / (1 + means)
