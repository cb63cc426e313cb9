"""The trained model as a folder that `zoo.create_model` reads."""

from __future__ import annotations

import copy
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback

import zoo
from zoo.adapt import adapters_of
from zoo.train.optim import unwrapped
from zoo.train.parallel import full_state_dict
from zoo.train.tasks import Task


class ExportModel(Callback):
    """After training, write the model (averaged, where there is an average) with `zoo.save_model`, and the files of the
    tokenizer that its data were read with. Of a model with adapters (`zoo.adapt`) that is the merged one where they can
    be merged without loss; `zoo.save_adapter` writes them alone, too.

    Args:
        folder: where to; relative to the run folder (the trainer's `default_root_dir`).
        adapter: where adapters go.
    """

    def __init__(self, folder: str = "model", adapter: str = "adapter") -> None:
        self.folder, self.adapter = folder, adapter

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
            root = Path(trainer.default_root_dir)
            if there := adapters_of(unwrapped(model)):
                zoo.save_adapter(unwrapped(model), root / self.adapter)
                if all(adapter.merges(unwrapped(model)) for adapter in there):
                    model = zoo.merge_adapter(copy.deepcopy(unwrapped(model)))
            folder = pl_module.save(model, root / self.folder)
            if hasattr(datamodule := getattr(trainer, "datamodule", None), "save_tokenizer"):
                datamodule.save_tokenizer(folder)  # pyright: ignore[reportOptionalMemberAccess]
        trainer.strategy.barrier()
