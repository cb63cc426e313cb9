"""SIGTERM and Ctrl-C end a run between two steps, with its state saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info

from zoo.train.callbacks.checkpoint import LastCheckpoint, newest_checkpoint


class Stopped(SystemExit):
    """Training was asked to end: `status` is 128 + the signal's number, the message says how to go on."""

    def __init__(self, message: str, received: int) -> None:
        super().__init__(message)
        self.code = self.status = 128 + received


class StopOnSignal(Callback):
    """At SIGTERM or Ctrl-C (SIGINT) finish the optimiser step, save the state with `LastCheckpoint`, raise `Stopped`.

    What is saved is what an unbroken run would have there, so that a resumed one ends as it would have. Where several
    processes train, all of them stop at the step at which one was asked. A second signal of a kind acts at once.

    Raises:
        Stopped: during training, in every process.
    """

    def __init__(self) -> None:
        self._received = 0
        self._stopping = False
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._received, self._stopping, self._step = 0, False, trainer.global_step
        if threading.current_thread() is threading.main_thread():  # the trainer puts handlers back when it ends
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._ask)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step != self._step:  # not within an accumulated batch, whose gradients no checkpoint holds
            self._step = trainer.global_step
            self._save_if_asked(trainer)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self._raise_if_saved(trainer)  # only here, so that the last step was logged

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if not trainer.sanity_checking:
            self._save_if_asked(trainer)
            self._raise_if_saved(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):
            rank_zero_info(f"stopped in the middle of step {trainer.global_step}; {_way_on(trainer)}")

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)

    def _save_if_asked(self, trainer: Trainer) -> None:
        if not self._stopping and trainer.strategy.reduce_boolean_decision(bool(self._received), all=False):
            self._stopping = True
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, LastCheckpoint):
                    callback.save(trainer)

    def _raise_if_saved(self, trainer: Trainer) -> None:
        if self._stopping:
            received = self._received or signal.SIGTERM
            name = signal.Signals(received).name
            raise Stopped(f"stopped by {name} after step {trainer.global_step}; {_way_on(trainer)}", received)


def _way_on(trainer: Trainer) -> str:
    saved = newest_checkpoint(trainer.default_root_dir)
    return "no state was saved" if saved is None else f"add --resume to continue from {saved}"
