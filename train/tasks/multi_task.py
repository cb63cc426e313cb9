"""Several tasks of one model at once."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.train.tasks.base import Task
from zoo.train.tasks.metrics import Mean

Batch = tuple[Tensor, dict[str, Tensor]]


class MultiTask(Task):
    """The weighted sum of the tasks' losses; batches are `(images (B, C, H, W), {task: target})`.

    The model maps images to a dict of outputs with the targets' names, as M³ViT does. A target of int64 is a class an
    image `(B,)` or a pixel `(B, H, W)`, with -100 where none is known: its loss is cross-entropy. A floating target has
    the output's shape, with NaN where none is known: its loss is the mean absolute error.

    Logs `{train,val,test}/loss` and, of each task, `{train,val,test}/TASK`, its loss, and `{val,test}/TASK_acc`, the
    share of right classes, all as means over what is known.

    Args:
        model: see `Task`, which also has the other arguments.
        task_weights: factors of the losses, by task; 1 where left out.

    Raises:
        ValueError: when a batch's targets are others than the model's outputs, or a weight is for another task.

    Paper: Liang et al., "M³ViT", arXiv:2210.14793: all tasks learn from every batch.
    """

    unit = "images"

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        task_weights: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, **kwargs)
        self.task_weights = task_weights or {}
        self.means = nn.ModuleDict()  # made when a task is first seen

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = {name: loss for name, (loss, _, _) in self._measured(self.trained, batch).items()}
        return self.log_training(self._sum(losses), **losses)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, split: str) -> None:
        measured = self._measured(self.evaluated, batch)
        for name, (loss, right, known) in measured.items():
            values = {name: (loss, known)} if right is None else {name: (loss, known), f"{name}_acc": (right, known)}
            for key, (value, count) in values.items():
                self._log_mean(f"{split}/{key}", value, count)
        total = self._sum({name: loss for name, (loss, _, _) in measured.items()})
        self._log_mean(f"{split}/loss", total, len(batch[0]))

    def _log_mean(self, name: str, value: Tensor, count: Tensor | int) -> None:
        key = name.partition("/")[2]
        if key not in self.means:
            self.means[key] = Mean().to(self.device)
        mean = cast(Mean, self.means[key])
        mean.update(value.detach(), count)
        self.log(name, mean, on_epoch=True, prog_bar=True, metric_attribute=f"means.{key}")

    def _measured(self, model: nn.Module, batch: Batch) -> dict[str, tuple[Tensor, Tensor | None, Tensor]]:
        """Of each task the mean loss, the share of right classes or None, and the number of known targets."""
        images, targets = batch
        outputs = model(images)
        if isinstance(outputs, Tensor):  # of a model with one task
            outputs = dict.fromkeys(targets, outputs)
        if outputs.keys() != targets.keys() or self.task_weights.keys() - targets.keys():
            raise ValueError(
                f"tasks must be the same: the model has {sorted(outputs)}, the data {sorted(targets)}, task_weights "
                f"{sorted(self.task_weights)}"
            )
        return {name: measure(outputs[name].float(), target) for name, target in targets.items()}

    def _sum(self, losses: dict[str, Tensor]) -> Tensor:
        return torch.stack([self.task_weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()


def measure(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Mean loss of an output, share of right classes (None for floating targets), number of known targets."""
    if target.is_floating_point():
        known = ~target.isnan()
        count = known.sum()
        return (output - target.where(known, output)).abs().sum() / count.clamp(min=1), None, count
    count = (target != -100).sum()
    loss = F.cross_entropy(output, target, reduction="sum") / count.clamp(min=1)
    return loss, (output.argmax(1) == target).sum() / count.clamp(min=1), count
