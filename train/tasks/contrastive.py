"""Learning which of two views belong together."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from zoo.layers.options import require_above, require_at_least
from zoo.train.contrastive import contrastive_loss, in_parts
from zoo.train.tasks.base import Task
from zoo.train.tasks.metrics import Mean

Batch = tuple[Tensor, Tensor]
MOST = 100.0  # of the scale, as in CLIP


class ContrastiveLearning(Task):
    """Both views of a thing are to be more like each other than like all others, see
    `zoo.train.contrastive.contrastive_loss`; batches are `(first (B, ...), second (B, ...))`.

    One model encodes both: its outputs, of `num_classes` numbers, are normalised. The scale of their products learns as
    well, and goes no further than 100. Neither `rows` nor `micro_batch` changes what is learnt but for rounding, and
    both take memory from what grows with the batch. Logs `{train,val,test}/loss`, and `{val,test}/recall`, how often
    among a batch the other view is the nearest, in the mean over both directions.

    Args:
        model: see `Task`, which also has the other arguments; an image classifier without batch norms, or an
            `M2Encoder`, whose pairs are images and texts.
        temperature: 1 / the scale at first.
        rows: rows of logits in memory at a time; all where None.
        micro_batch: inputs of whose encoding activations are in memory at a time; all where None.
        group_size: processes whose pairs are told apart, which must divide their number; all where None.

    Raises:
        ValueError: for a number out of range; when fitting, for a group_size that does not divide the processes.

    Paper: see `zoo.train.contrastive.contrastive_loss`.
    """

    unit = "pairs"

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        temperature: float = 0.07,
        rows: int | None = None,
        micro_batch: int | None = None,
        group_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, **kwargs)
        require_above(0, temperature=temperature)
        require_at_least(1, rows=rows, micro_batch=micro_batch, group_size=group_size)
        self.rows, self.micro_batch, self.group_size = rows, micro_batch, group_size
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.group: Any = None
        self.means = nn.ModuleDict({name: Mean() for name in ("loss", "recall")})

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if (processes := self.trainer.world_size) > 1:
            size = self.group_size or processes
            if processes % size:
                raise ValueError(f"group_size must divide the {processes} processes, got {size}")
            self.group, _ = dist.new_subgroups(size)

    @property
    def scale(self) -> Tensor:
        """What products of features are multiplied by."""
        return self.log_scale.exp()

    def encode(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Features (B, D) of length 1."""
        return in_parts(lambda part: F.normalize(model(part).float(), dim=1), inputs, self.micro_batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        first, second = (self.encode(self.trained, view) for view in batch)
        loss = contrastive_loss(first, second, self.scale, rows=self.rows, group=self.group)
        return self.log_training(loss, scale=self.scale)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """And the scale goes no further, from where it may come back: a clamp in the loss would leave no gradient."""
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(MOST))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, split: str) -> None:
        first, second = (self.encode(self.evaluated, view) for view in batch)
        loss = contrastive_loss(first, second, self.scale, rows=self.rows)
        recall, pairs = nearest(first, second).mean(), len(first)
        for name, value, count in (("loss", loss, pairs), ("recall", recall, pairs)):
            mean = cast(Mean, self.means[name])
            mean.update(value, count)
            self.log(f"{split}/{name}", mean, on_epoch=True, prog_bar=True)

    def _optimizer(self, model: nn.Module, around: Callable[..., Optimizer] | None = None) -> Optimizer:
        optimizer = super()._optimizer(model, around)
        if hasattr(self, "log_scale"):
            optimizer.add_param_group({"params": [self.log_scale], "weight_decay": 0.0})
        return optimizer


def nearest(first: Tensor, second: Tensor) -> Tensor:
    """Of normalised features (B, D) twice, whether the other view is the nearest one: (B,), the mean of both ways."""
    like, own = first @ second.mT, torch.arange(len(first), device=first.device)
    return torch.stack([like.argmax(1) == own, like.argmax(0) == own]).float().mean(0)
