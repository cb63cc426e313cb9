"""A warning where compressed weights are scored on what they were calibrated on."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from lightning import Trainer
from lightning.pytorch import Callback

from zoo.quantize.seen import held_out


class HeldOut(Callback):
    """``zoo.quantize.seen.held_out`` around an evaluation."""

    def __init__(self) -> None:
        self.open = ExitStack()

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.open.enter_context(held_out(pl_module.trained))

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.open.close()

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """An evaluation that was broken off leaves nothing on the model."""
        self.open.close()

    on_test_start, on_test_end = on_validation_start, on_validation_end
