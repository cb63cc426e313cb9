"""What every task shares: the model, its averaged copy, sharding, the optimiser and its schedule."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

import zoo
from zoo.layers.precision import is_narrow
from zoo.layers.quant import check_trainable
from zoo.train.memory import Lean, as_memories, check_sharded
from zoo.train.optim import ADAM_BETAS, build_optimizer, unwrapped, warmup_cosine
from zoo.train.parallel import distribute


class Task(LightningModule):
    """A model, what it learns from a batch, and how it is optimised. Subclasses write the steps.

    The model is made in `configure_model`, so every strategy of Lightning can use the task; under
    `ModelParallelStrategy` (FSDP2) each of its blocks, then the whole, is sharded over the data-parallel processes, or
    it is shared out by a plan of `zoo.parallelize`.

    Args:
        model: a name of `zoo.list_models()`, "local-dir:FOLDER" (as `zoo.save_model` writes it), or a module.
        model_args: further arguments of `zoo.create_model`: `pretrained`, `checkpoint_path` and config overrides.
        optimizer: timm's name of an optimiser, or "coat" (`zoo.train.coat`).
        lr: peak learning rate.
        weight_decay: see `build_optimizer` for what is exempt.
        betas: of the Adam family, two or for Adan three; others ignore it.
        optimizer_args: further arguments of the optimiser.
        warmup_steps: optimiser steps of linear warm-up.
        min_lr: where the cosine ends; it is as long as the trainer runs.
        schedule_steps: the cosine's length in optimiser steps where it is not the trainer's.
        auxiliary_weight: factor of the model's side losses (`zoo.auxiliary_losses`), whose sum is added to the loss.
        grad_checkpointing: recompute activations in the backward pass to save memory.
        memory: further ways to train in less memory (`zoo.train.memory`): {"kind": name, option: value} or a list.

    Attributes:
        model: the module being trained; None before `configure_model`. average: its averaged copy where the `EMA`
            callback asked for one, of at least float32 unless it is sharded; evaluation uses it, checkpoints hold it.
            unit: what the task counts ("images", "tokens"), for throughput. reads_data: whether the model is given what
            the data hold, and must fit them.

    Raises:
        ValueError, TypeError: an unknown model or override, optimiser or argument of it, or a number out of range.
    """

    unit = "items"
    reads_data = True

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        optimizer: str = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        betas: tuple[float, ...] = ADAM_BETAS,
        optimizer_args: dict[str, Any] | None = None,
        warmup_steps: int = 0,
        min_lr: float = 0.0,
        schedule_steps: int | None = None,
        auxiliary_weight: float = 1.0,
        grad_checkpointing: bool = False,
        memory: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        if lr <= 0 or not 0 <= min_lr <= lr:
            raise ValueError(f"learning rates must satisfy 0 <= min_lr <= lr and lr > 0, got lr={lr}, min_lr={min_lr}")
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps must be >= 0, got {warmup_steps}")
        self.given: tuple[str | nn.Module, dict[str, Any]] = (model, dict(model_args or {}))
        self.build = _builder(*self.given)
        self.optimizer_name, self.lr, self.weight_decay = optimizer, lr, weight_decay
        self.optimizer_args = {"betas": tuple(betas), **(optimizer_args or {})}
        self._optimizer(nn.Linear(1, 1, device="meta"))  # a wrong argument fails here, before training starts
        self.warmup_steps, self.min_lr, self.schedule_steps = warmup_steps, min_lr, schedule_steps
        self.auxiliary_weight = auxiliary_weight
        listed = memory if isinstance(memory, list) else [] if memory is None else [memory]
        self.memory = as_memories([*[{"kind": "checkpointing"}] * grad_checkpointing, *listed])
        if self.memory and not str(model).startswith("local-dir:"):
            sketch = _sketch(*self.given)  # what a task makes of it is checked with the model
            for method in self.memory:
                method.check(sketch)
        self.lean: Lean | None = None
        self.model: nn.Module | None = None
        self.average: nn.Module | None = None
        self.rounded: list[nn.Module] = []  # the average in the model's dtypes, during an evaluation; in no checkpoint
        self.keep_average = False  # the EMA callback sets it before configure_model
        self.asking = False  # the loss is wanted, and nothing is logged

    def change(self, **fields: Any) -> None:
        """Give a named model further options, before it is built.

        Raises:
            ValueError, TypeError: it cannot have them.
        """
        model, model_args = self.given
        self.given = (model, {**model_args, **fields})
        self.build = _builder(*self.given)

    def sketch(self) -> nn.Module:
        """The model as it will be built, without memory and weights; or the module that was given."""
        return _sketch(*self.given)

    def configure_model(self) -> None:
        if self.model is not None:
            return
        self.model = self.build().train()
        if self.keep_average:
            self.average = copy.deepcopy(self.model).requires_grad_(False)
            for parameter in self.average.parameters() if self.device_mesh is None else ():
                parameter.data = parameter.data.float() if is_narrow(parameter) else parameter.data
        self.lean = Lean(self.model, self.memory)
        if self.device_mesh is not None:
            check_sharded(self.memory)
            distribute(self.model, self.trainer.strategy, self.device_mesh)
            if self.average is not None:
                distribute(self.average, self.trainer.strategy, self.device_mesh, free_root=True)

    def on_fit_start(self) -> None:
        """The model remembers how its training data are prepared: `zoo.save_model` writes it with the weights."""
        preparation = getattr(getattr(self.trainer, "datamodule", None), "preparation", {})
        for model in filter(None, (self.model, self.average)):
            remember(unwrapped(model), preparation)

    @property
    def trained(self) -> nn.Module:
        """The model being trained."""
        if self.model is None:
            raise RuntimeError("the task has no model yet: the trainer makes it, or call task.configure_model()")
        return self.model

    @property
    def evaluated(self) -> nn.Module:
        """The averaged model where there is one, in an evaluation with the model's dtypes; else the model itself."""
        return next(filter(None, (*self.rounded, self.average, self.trained)))

    def result(self) -> nn.Module:
        """What a finished training leaves: the average where there is one, else the model."""
        return self.average or self.trained

    def save(self, model: nn.Module, folder: Path) -> Path:
        """Write what a finished training leaves, for `zoo.create_model` to read."""
        return zoo.save_model(model.eval(), folder)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Task:
        """Casts (bf16-true) leave the average as it is: in bfloat16 its steps would be rounded away."""
        average, self.average = self.average, None
        super()._apply(fn, recurse)
        self.average = average

        def apply(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            return tensor.to(converted.device) if is_narrow(converted) else converted

        if average is not None:
            average._apply(apply)
        return self

    def on_evaluation_start(self) -> None:
        """Evaluate with the average rounded as the model is, which its inputs fit."""
        if self.average is not None and self.device_mesh is None:
            pairs = list(zip(self.average.parameters(), self.trained.parameters(), strict=True))
            if any(average.dtype != weight.dtype for average, weight in pairs):
                self.rounded = [copy.deepcopy(self.average).eval()]
                for rounded, weight in zip(self.rounded[0].parameters(), self.trained.parameters(), strict=True):
                    rounded.data = rounded.data.to(weight.dtype)

    on_validation_start = on_test_start = on_predict_start = on_evaluation_start

    def on_evaluation_end(self) -> None:
        """Let go of that."""
        self.rounded = []

    on_validation_end = on_test_end = on_predict_end = on_evaluation_end

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.evaluated(*args, **kwargs)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """The outputs for a batch's inputs, its targets left out."""
        return self(batch[0] if isinstance(batch, (tuple, list)) else batch)

    def count(self, batch: Any) -> int:
        """How many `unit`s a batch holds."""
        return len(batch[0])

    def log_training(self, loss: Tensor, **metrics: Tensor) -> Tensor:
        """Log the loss, add the weighted side losses and return the sum, which is what backward gets."""
        if self.asking:
            return loss
        values = {"train/loss": loss, **{f"train/{name}": value for name, value in metrics.items()}}
        self.log_dict({name: value.detach() for name, value in values.items()}, prog_bar=True, sync_dist=True)
        auxiliary = zoo.auxiliary_losses(self.trained)
        for name, value in auxiliary.items():
            self.log(f"train/{name}", value.detach(), sync_dist=True)
            loss = loss + self.auxiliary_weight * value
        for name, value in zoo.activity(self.trained).items():
            if value.dim() == 0:
                self.log(f"activity/{name}", value.detach().float(), sync_dist=True)
        return loss

    @torch.no_grad()
    def loss_of(self, batch: Any) -> Tensor:
        """What would be minimised of a batch, without side losses; nothing is logged."""
        self.asking = True
        try:
            return self.training_step(batch, 0)  # type: ignore[return-value]
        finally:
            self.asking = False

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        zoo.after_step(self.trained)  # what no gradient moves: the bias of balanced experts, centroids
        if self.lean is not None:
            self.lean.after_step(getattr(optimizer, "optimizer", optimizer), self.trainer.global_step + 1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        check_trainable(self.trained)
        sharded = getattr(self.trainer.strategy, "sharded_optimizer", None)
        build = partial(self._optimizer, around=sharded)
        optimizer = build(self.trained) if self.lean is None else self.lean.optimizer(build)
        scheduler = LambdaLR(optimizer, lambda step: self._lr_factor(step))  # a function: its state is the step alone
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _optimizer(self, model: nn.Module, around: Callable[..., Optimizer] | None = None) -> Optimizer:
        options = {"lr": self.lr, "weight_decay": self.weight_decay, **self.optimizer_args}
        return build_optimizer(model, self.optimizer_name, around=around, **options)

    def _lr_factor(self, step: int) -> float:
        total = self.schedule_steps
        if total is None:  # not asked for at step 0, when the trainer would have to make the data loader to know
            total = self.trainer.estimated_stepping_batches if step > self.warmup_steps else math.inf
        return warmup_cosine(step, self.warmup_steps, math.inf if total < 0 else total, self.min_lr / self.lr)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Without a place of their own here, a checkpoint's averaged weights are the model's; and the other way round.

        Sharded checkpoints are read straight into the model: there the `EMA` callback must be on, or off, as it was.
        """
        state = checkpoint.get("state_dict", {})
        averaged = {name: name.removeprefix("average.") for name in state if name.startswith("average.")}
        if averaged and self.average is None:
            state.update({f"model.{rest}": state.pop(name) for name, rest in averaged.items()})
        elif state and self.average is not None and not averaged:
            plain = [name.removeprefix("model.") for name in state if name.startswith("model.")]
            state.update({f"average.{rest}": state[f"model.{rest}"] for rest in plain})


def remember(model: nn.Module, preparation: dict[str, Any]) -> None:
    """Put what a model's configuration has a field for into it."""
    config = getattr(model, "config", None)
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {field.name for field in dataclasses.fields(config)}
        known = {name: value for name, value in preparation.items() if name in fields}
        setattr(model, "config", dataclasses.replace(config, **known))  # noqa: B010  (pyright takes it for a submodule)


def _builder(model: str | nn.Module, model_args: dict[str, Any]) -> partial[nn.Module]:
    """What makes the model. A wrong name or override fails here, before processes were started: a named model is built
    on the meta device, which costs no memory, and dropped."""
    if isinstance(model, nn.Module):
        if model_args:
            raise TypeError(f"model_args go with a model's name, got a {type(model).__name__} and {model_args}")
        return partial(_itself, model)
    if not model.startswith("local-dir:"):
        _sketch(model, model_args)
    return partial(zoo.create_model, model, **model_args)


def _sketch(model: str | nn.Module, model_args: dict[str, Any]) -> nn.Module:
    """The model without memory and weights, or the module that was given."""
    if isinstance(model, nn.Module):
        return unwrapped(model)
    weights = {"pretrained", "checkpoint_path", "device", "deploy"}
    return zoo.create_model(model, device="meta", **{k: v for k, v in model_args.items() if k not in weights})


def _itself(model: nn.Module) -> nn.Module:
    return model
