"""Image classification."""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.train.optim import unwrapped
from zoo.train.tasks.base import Task
from zoo.train.tasks.distillation import ImageTeacher, Kind
from zoo.train.tasks.metrics import Mean

Batch = tuple[Tensor, Tensor]


class ImageClassification(Task):
    """Cross-entropy over classes; batches are `(images (B, C, H, W), targets)`.

    Targets are `(B,)` int64 classes, or `(B, num_classes)` probabilities as mixup and CutMix make them. Logs
    `{train,val,test}/loss` in nats and `/acc1`, `/acc5` as shares of images: `acc5` in evaluation where there are more
    than 5 classes, `acc1` in training where targets are classes. A model's `auxiliary_logits`, (weight, logits) of a
    second classifier, add their weighted loss in training.

    Args:
        model: see `Task`, which also has the other arguments.
        label_smoothing: eps: the target is 1 - eps + eps / num_classes on the class and eps / num_classes elsewhere.
            Probabilities are taken as they are: mixup smooths them itself.
        teacher: learn from this model's predictions too: "local-dir:FOLDER", or a name with weights.
        distillation, distillation_weight, temperature, top_k: how, see `Teacher`.
    """

    unit = "images"

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        label_smoothing: float = 0.0,
        teacher: str | None = None,
        distillation: Kind = "hard",
        distillation_weight: float = 0.5,
        temperature: float = 1.0,
        top_k: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, **kwargs)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.label_smoothing = label_smoothing
        kept = (distillation, distillation_weight, temperature, top_k)
        self.teacher = None if teacher is None else ImageTeacher(teacher, *kept)
        self.means = nn.ModuleDict({name: Mean() for name in ("loss", "acc1", "acc5")})

    def configure_model(self) -> None:
        super().configure_model()
        if self.teacher and self.teacher.model is None:
            self.teacher.build()
            self.teacher.check(unwrapped(self.trained))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        logits = self.trained(images).float()  # (B, num_classes)
        loss = self._loss(logits, targets)
        if self.teacher:
            loss = self.teacher.mixed(loss, logits, self.teacher.logits(images, unwrapped(self.trained)))
        if found := getattr(self.trained, "auxiliary_logits", None):
            weight, auxiliary = found
            loss = loss + weight * self._loss(auxiliary.float(), targets)
        if targets.is_floating_point():
            return self.log_training(loss)
        return self.log_training(loss, acc1=(logits.argmax(1) == targets).float().mean())

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        smoothing = 0.0 if targets.is_floating_point() else self.label_smoothing
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, split: str) -> None:
        images, targets = batch
        logits = self.evaluated(images).float()
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]  # (B, 5)
        values = {"loss": F.cross_entropy(logits, targets, reduction="none"), "acc1": ranked[:, 0]}
        if logits.shape[1] > 5:
            values["acc5"] = ranked.any(1)
        for name, value in values.items():
            mean = cast(Mean, self.means[name])
            mean.update(value)
            self.log(f"{split}/{name}", mean, on_epoch=True, prog_bar=True)


class TextClassification(ImageClassification):
    """The same for token sequences: batches are `(tokens (B, T) int64, targets (B,))`, negative tokens are padding."""

    unit = "sequences"


class SequenceClassification(ImageClassification):
    """The same for sequences of vectors: batches are `(values (B, T, in_features), targets (B,))`."""

    unit = "sequences"
