"""What a terminal shows of a run."""

from __future__ import annotations

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Lightning's bars, which say "Epoch 3" where the number of epochs is not known."""

    def _get_train_description(self, current_epoch: int) -> str:
        known = (self.trainer.max_epochs or -1) > 0
        return super()._get_train_description(current_epoch) if known else f"Epoch {current_epoch}"


class ValidateAtEnd(Callback):
    """Validate after the last epoch, whatever `check_val_every_n_epoch` says of the others."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # which an epoch that is gone on with does not call

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.check_val_every_n_epoch and trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1
