"""The trained model as a folder that `zoo.create_model` reads."""

from __future__ import annotations

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback

import zoo
from zoo.train.parallel import full_state_dict
from zoo.train.tasks import Task


class ExportModel(Callback):
    """After training, write the model (averaged, where there is an average) with `zoo.save_model`, and the files of the
    tokenizer that its data were read with.

    Args:
        folder: where to; relative to the run folder (the trainer's `default_root_dir`).
    """

    def __init__(self, folder: str = "model") -> None:
        self.folder = folder

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, Task):
            raise TypeError(f"ExportModel exports the model of a zoo.train.tasks.Task, got {type(pl_module).__name__}")
        model = pl_module.result()
        weights = full_state_dict(model)
        if trainer.is_global_zero:
            if trainer.strategy.restore_checkpoint_after_setup:  # sharded: fill a whole one
                model = pl_module.build()
                model.load_state_dict(weights)
                model.config = pl_module.trained.config
            folder = zoo.save_model(model.eval(), Path(trainer.default_root_dir) / self.folder)
            if hasattr(datamodule := getattr(trainer, "datamodule", None), "save_tokenizer"):
                datamodule.save_tokenizer(folder)  # pyright: ignore[reportOptionalMemberAccess]
        trainer.strategy.barrier()
