"""Regression of vectors, one for each vector of a sequence or set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from zoo.train.tasks.base import Task
from zoo.train.tasks.metrics import Mean

Batch = tuple[Tensor, Tensor]


class SequenceRegression(Task):
    """Squared error; batches are `(inputs (B, T, in_features), targets (B, T, out_features))`.

    Logs `{train,val,test}/loss`, the mean of the squares of what the outputs miss, over everything, and in evaluation
    that of each output that has a name.

    Args:
        model: see `Task`, which also has the other arguments.
        names: of the outputs, in their order.
    """

    unit = "sequences"

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        names: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, **kwargs)
        self.names = tuple(names)
        self.means = nn.ModuleDict({name: Mean() for name in ("loss", *self.names)})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = batch
        return self.log_training((self.trained(inputs).float() - targets).square().mean())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, split: str) -> None:
        inputs, targets = batch
        errors = (self.evaluated(inputs).float() - targets).square()
        values = {"loss": errors} | dict(zip(self.names, errors.unbind(-1), strict=False))
        for name, value in values.items():
            mean = cast(Mean, self.means[name])
            mean.update(value)
            self.log(f"{split}/{name}", mean, on_epoch=True, prog_bar=True)
