"""Training in stages, in each of which other parts learn."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback

from zoo.patterns import matched


class Stages(Callback):
    """In each stage only parameters whose names fit one of its patterns learn, with an optimiser that begins anew.

    What learns depends on the number of the step alone, so that a resumed run goes on as it would have. Several
    processes by DDP must be told to look for unused parameters (`--trainer.strategy ddp_find_unused_parameters_true`).

    Args:
        patterns: of each stage, such as [["embedding.*", "head.*"], ["blocks.*"], ["*"]].
        steps: optimiser steps of each stage; the last goes on to the end.

    Raises:
        ValueError: for no stage, stages without steps, or not a number of steps each; when training starts, for a
            pattern that fits no parameter.
    """

    def __init__(self, patterns: list[list[str]], steps: list[int]) -> None:
        if not patterns or len(steps) != len(patterns) or not all(patterns) or min(steps) < 1:
            raise ValueError(f"each stage needs patterns and steps of at least 1, got {patterns} and {steps}")
        self.patterns, self.ends = patterns, list(accumulate(steps))
        self._step = -1

    def stage(self, step: int) -> int:
        """Of an optimiser step."""
        return min(sum(step >= end for end in self.ends), len(self.ends) - 1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for every name, and set what learns."""
        names = [name for name, _ in self._model(pl_module).named_parameters()]
        for pattern in (one for stage in self.patterns for one in stage):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"{pattern!r} fits no parameter; the model has {names}")
        self._step = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Once an optimiser step."""
        step = trainer.global_step
        if step == self._step:
            return
        self._step, stage = step, self.stage(step)
        for name, parameter in self._model(pl_module).named_parameters():
            parameter.requires_grad_(matched(name, self.patterns[stage]))
        if step and self.stage(step - 1) != stage:
            for optimizer in trainer.optimizers:
                optimizer.state.clear()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything learns again."""
        self._model(pl_module).requires_grad_(True)

    def _model(self, pl_module: LightningModule) -> Any:
        return pl_module.trained
