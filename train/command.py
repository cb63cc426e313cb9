"""`zoo train` and `zoo eval`: a recipe and its overrides become a trainer, a task and data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ProgressBar as Bar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from zoo.adapt.files import is_adapter
from zoo.checkpoints import fit_state_dict
from zoo.train.agreement import agree
from zoo.train.callbacks import (
    EMA,
    ExportModel,
    HeldOut,
    LastCheckpoint,
    NaNGuard,
    ProgressBar,
    RNGState,
    StopOnSignal,
    Throughput,
    ValidateAtEnd,
    newest_checkpoint,
)
from zoo.train.callbacks.checkpoint import is_complete
from zoo.train.data import DataModule
from zoo.train.history import History
from zoo.train.memory import check_sharded
from zoo.train.memory.options import with_memory
from zoo.train.overrides import ADAPTER, with_methods
from zoo.train.parallel import check_strategy, register_strategies
from zoo.train.quiet import quiet
from zoo.train.run_folder import EVALUATED, KEYS, configuration, has_configuration
from zoo.train.tasks import Task
from zoo.train.trust import read_checkpoint


class Run(LightningCLI):
    """A recipe, with overrides, made into `trainer`, `model` (a `Task`) and `datamodule`.

    Besides `model`, `data`, `trainer` and `seed_everything`, a recipe may set the callbacks that every run has: `ema`
    and, for training, `checkpoint`, `nan_guard` and `throughput` (see `zoo.train.callbacks`). `seed_everything` draws
    the initial weights and dropout, `data.seed` the order of the data and its augmentation.

    Args:
        recipe: a YAML file, or YAML.
        overrides: options as on the command line.
        folder: the trainer's `default_root_dir`.
        kwargs: of `LightningCLI`.

    Raises:
        argparse.ArgumentError, ValueError, TypeError, OSError: a wrong option or value.
    """

    checkpoint: Path | None

    def __init__(self, recipe: Path | str, overrides: Sequence[str], folder: Path, **kwargs: Any) -> None:
        self.folder = folder
        self.prepared = False
        register_strategies()
        overrides = with_memory(with_methods(overrides, recipe), recipe)
        with quiet():
            super().__init__(
                Task,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                seed_everything_default=0,
                parser_kwargs={"exit_on_error": False, "prog": "zoo"},
                args=["--config", str(recipe), *_with_folder(overrides, folder)],
                run=False,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                **kwargs,
            )
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            check_sharded(self.model.memory)

    def prepare(self, fixed: bool = False) -> None:
        """Set the data up and let the model fit them, or with `fixed` the data the model; once.

        Raises:
            ValueError, OSError: data that are not there, or that the model or the checkpoint contradicts.
        """
        if not self.prepared:
            rank_zero_only(self.datamodule.prepare_data)()
            agree(self.model, self.datamodule, fixed)
            self.datamodule.setup()
            if self.checkpoint is not None:
                check_state(self.model, read_checkpoint(self.checkpoint), self.checkpoint)
            self.prepared = True

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)  # as the base class does, but for its warning about sys.argv

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # noted, not obeyed: the command line imports what a recipe names, before it comes here
        parser.add_argument("--import", type=str | list[str], default=[], help="Python files that register models")
        callbacks = {"ema": EMA, "nan_guard": NaNGuard, "throughput": Throughput, "checkpoint": LastCheckpoint}
        for name, callback in callbacks.items():
            parser.add_lightning_class_args(callback, name)
        parser.set_defaults({"ema.decay": None})

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        check_strategy(self.config_init["trainer"]["strategy"])
        return super().instantiate_trainer(default_root_dir=str(self.folder), **kwargs)


class TrainingRun(Run):
    """A recipe to be trained in a run folder: `config.yaml`, `history.jsonl`, `checkpoints/` and, at the end, `model/`.

    Args:
        recipe, overrides: see `Run`.
        output: the run folder.
        resume: continue from the folder's checkpoint, with the folder's configuration and these overrides; without a
            checkpoint, start.

    Raises:
        FileExistsError: the folder has a checkpoint and `resume` is not set; and what `Run` raises.
    """

    def __init__(self, recipe: Path, overrides: Sequence[str], output: Path, resume: bool = False) -> None:
        self.checkpoint = newest_checkpoint(output)
        if self.checkpoint is not None and not resume:
            raise FileExistsError(f"{output} holds a run: add --resume to continue it, or choose another --output")
        source: Path | str = recipe
        if self.checkpoint is not None:
            read_checkpoint(self.checkpoint)
            source = _own(output, recipe, overrides) if has_configuration(output) else recipe
        always = [RNGState(), ValidateAtEnd(), ExportModel(), StopOnSignal()]
        super().__init__(
            source, overrides, output, trainer_defaults={"callbacks": always}, save_config_kwargs={"overwrite": True}
        )
        if resume:
            found = self.checkpoint is not None
            rank_zero_info(f"resuming from {self.checkpoint}" if found else f"no checkpoint in {output}: starting anew")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        chosen = self.config_init["trainer"]
        given = chosen["logger"]
        loggers = given if isinstance(given, list) else [given] if isinstance(given, Logger) else []
        callbacks = chosen["callbacks"] if isinstance(chosen["callbacks"], list) else [chosen["callbacks"]]
        if chosen["enable_progress_bar"] is not False and not any(isinstance(one, Bar) for one in callbacks):
            self.trainer_defaults["callbacks"].append(ProgressBar())
        if chosen["enable_checkpointing"] is False:
            self.parser.callback_keys.remove("checkpoint")
        logger = False if given is False else [History(self.folder), *loggers]  # the first one's folder is the run's
        return super().instantiate_trainer(logger=logger, **kwargs)

    def prepare(self, fixed: bool = False) -> None:
        """As of every run; and whether the checkpoint is of these data.

        Raises:
            ValueError: the checkpoint was taken in the middle of an epoch of other data, or in another order.
        """
        first = not self.prepared
        super().prepare(fixed)
        whole = self.trainer.world_size == 1 and not isinstance(self.trainer.strategy, ModelParallelStrategy)
        if first and self.checkpoint is not None and whole:  # else the order has parts
            check_position(self.datamodule, self.trainer, read_checkpoint(self.checkpoint))

    def fit(self) -> None:
        """Train to the end.

        Raises:
            NonFiniteError: see `NaNGuard`. Stopped: see `StopOnSignal`.
        """
        self.prepare()
        with quiet():
            self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=self.checkpoint, weights_only=True)

    def scores(self) -> dict[str, float]:
        """The latest metrics on held-out data."""
        return {name: float(value) for name, value in self.trainer.callback_metrics.items() if name.startswith("val/")}


class EvaluationRun(Run):
    """A recipe's task and data, to score weights from `source`.

    Args:
        recipe, overrides: see `Run`; a run folder has its own configuration in place of a recipe, which may be None.
        source: a checkpoint, a run folder, a folder that `zoo.save_model` or `zoo.save_adapter` wrote, or a file of
            weights.

    Raises:
        FileNotFoundError: there is none of them at `source`.
        ValueError: it would run code (see `read_checkpoint`); and what `Run` raises.
    """

    def __init__(self, recipe: Path | None, overrides: Sequence[str], source: Path) -> None:
        self.checkpoint = None
        own = has_configuration(source) and newest_checkpoint(source) is not None
        chosen = _own(source, recipe, overrides, EVALUATED) if own else recipe
        if chosen is None:
            raise ValueError(
                f"{source} is no run folder with a configuration and a checkpoint: name its recipe as well"
            )
        found = source if source.is_file() or is_complete(source) else newest_checkpoint(source)
        if is_adapter(source):
            overrides = [*overrides, f"{ADAPTER}={source}"]
        elif (source / "config.json").is_file():
            overrides = [*overrides, f"--model.model=local-dir:{source}", "--model.model_args={}"]
        elif found is None:
            raise FileNotFoundError(f"{source} is no file of weights, no run folder and no folder of zoo.save_model")
        elif is_complete(found) and "pytorch-lightning_version" in read_checkpoint(found):
            self.checkpoint = found
        else:
            overrides = [*overrides, f"--model.model_args.checkpoint_path={found}"]
        # RNGState has nothing to do here, but Lightning warns where a checkpoint's callback is missing
        always = {"callbacks": [RNGState(), HeldOut()]}
        super().__init__(chosen, overrides, source.parent, save_config_callback=None, trainer_defaults=always)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        self.parser.callback_keys = ["ema"]
        return super().instantiate_trainer(logger=False, enable_checkpointing=False, **kwargs)

    def evaluate(self, split: Literal["val", "test"]) -> dict[str, float]:
        """The metrics on held-out data."""
        self.prepare(fixed=self.checkpoint is None)
        run = self.trainer.validate if split == "val" else self.trainer.test
        options = {"ckpt_path": self.checkpoint, "verbose": False, "weights_only": True}
        with quiet():
            return dict(run(self.model, datamodule=self.datamodule, **options)[0])


def _with_folder(overrides: Sequence[str], folder: Path) -> Iterator[str]:
    """Let loggers that want a `save_dir` write into the run folder, unless another one is given."""
    wanted = not any(re.match(r"--trainer\.logger\.(init_args\.)?save_dir\b", option) for option in overrides)
    for before, option in zip(("", *overrides), overrides, strict=False):
        yield option
        whole = option if option.startswith("--") else f"{before}={option}"
        if wanted and re.fullmatch(r"--trainer\.logger\+?=([\w.]+\.)?(CSVLogger|TensorBoardLogger)", whole):
            yield f"--trainer.logger.save_dir={folder}"


def _own(run: Path, recipe: Path | None, overrides: Sequence[str], keys: tuple[str, ...] = KEYS) -> str:
    content, differing = configuration(run, recipe, keys, overrides)
    if differing:
        rank_zero_info(f"the configuration is that of {run}, which differs from {recipe}: {'; '.join(differing)}")
    return content


def check_state(task: Task, checkpoint: dict[str, Any], path: Path) -> None:
    """Whether the weights of a checkpoint are those of a task's model; of a sharded one nothing is known here.

    Raises:
        ValueError: listing what is missing, unexpected or of another shape.
    """
    if isinstance(task.given[0], str) and "state_dict" in checkpoint:
        found = {name: value for name, value in checkpoint["state_dict"].items() if name.startswith("model.")}
        found = {name.removeprefix("model."): value for name, value in found.items()}
        fit_state_dict(found, task.sketch().state_dict(), {}, str(path))


def check_position(data: LightningDataModule, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Whether a checkpoint's place in an epoch is one of these data, before a run's folder is written to.

    Raises:
        ValueError: see `BatchLoader.load_state_dict`.
    """
    if isinstance(data, DataModule):
        data.trainer = trainer
        loops = checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {})
        for place in loops.get("combined_loader", ()):
            data.train_dataloader().load_state_dict(place)


def evaluate_images(
    model: Any, folder: Path, split: str, *, exif_orientation: bool = False, skip_bad_images: bool = False
) -> dict[str, float]:
    """Loss and accuracy of an image classifier on ``folder/split/<class>/<image>``, or on ``folder/<class>/<image>``
    where there is no such split, prepared as the model's ``pretrained_cfg`` says.

    Args:
        model: an image classifier.
        folder: of a split, or of folders of splits.
        split: name of the folder to score.
        exif_orientation: see `ImageDataModule`.
        skip_bad_images: see `ImageDataModule`.

    Raises:
        ValueError: for a model that is no image classifier, or has another number of classes than the folder.
        FileNotFoundError: when there are no images.
    """
    from zoo.train.data import ImageDataModule
    from zoo.train.tasks import ImageClassification

    if not hasattr(model, "pretrained_cfg"):
        raise ValueError(f"images can be scored by an image classifier, got {type(model).__name__}")
    root, name = (folder, split) if (folder / split).is_dir() else (folder.parent, folder.name)
    data = ImageDataModule(
        root=str(root), train_split=name, val_split=name, test_split=name, pretrained_cfg=model.pretrained_cfg,
        exif_orientation=exif_orientation, skip_bad_images=skip_bad_images,
    )  # fmt: skip
    if data.num_classes != model.num_classes:
        raise ValueError(f"the model has {model.num_classes} classes, {root / name} {data.num_classes} class folders")
    with quiet():
        trainer = Trainer(logger=False, enable_checkpointing=False, callbacks=[HeldOut()])
        return dict(trainer.validate(ImageClassification(model), data, verbose=False)[0])
