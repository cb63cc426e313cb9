"""Exponential moving average of the weights."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor

from zoo.train.tasks import Task


class EMA(Callback):
    """Keep an average of a `Task`'s weights, evaluate with it, and save it with every checkpoint.

    After optimiser step t = 1, 2, ... each parameter moves as

        average = d average + (1 - d) weight,    d = min(decay, (1 + t) / (10 + t))

    with the ramp keeping the first weights from dominating; buffers are copied. The average of a bfloat16 or float16
    model is float32, unless it is sharded: small steps would be rounded away. It is a part of the task
    (`task.average`), so that checkpoints, resuming, DDP and sharding treat it as they treat the model. Lightning's
    `EMAWeightAveraging` cannot be sharded, which is why it is not used here.

    Args:
        decay: d in the long run, in [0, 1); None turns averaging off.
        ramp: start with a smaller d, as above.

    Raises:
        ValueError: decay out of range.
        TypeError: what is trained is no `Task`.
    """

    def __init__(self, decay: float | None = 0.999, ramp: bool = True) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), or None for no averaging, got {decay}")
        self.decay, self.ramp = decay, ramp
        self._updated = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.decay is not None:
            _task(pl_module).keep_average = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._updated = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if self.decay is None or trainer.global_step == self._updated:  # also within an accumulated batch
            return
        step = self._updated = trainer.global_step
        task = _task(pl_module)
        assert task.average is not None, "a task whose model was built before EMA was set up keeps no average"
        decay = min(self.decay, (1 + step) / (10 + step)) if self.ramp else self.decay
        averages = [_local(p) for p in task.average.parameters()]
        weights = [_local(p) for p in task.trained.parameters()]
        weights = [weight.to(average.dtype) for weight, average in zip(weights, averages, strict=True)]
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for average, buffer in zip(task.average.buffers(), task.trained.buffers(), strict=True):
            average.copy_(buffer)


def _task(module: LightningModule) -> Task:
    if not isinstance(module, Task):
        raise TypeError(f"EMA averages the model of a zoo.train.tasks.Task, got {type(module).__name__}")
    return module


def _local(parameter: Tensor) -> Tensor:
    """This process's part: an average is taken element by element, so it needs no other."""
    return (parameter.to_local() if isinstance(parameter, DTensor) else parameter).detach()
