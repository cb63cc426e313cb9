"""A run that is broken off anywhere and resumed ends where the unbroken run ends, bit for bit; and a seed is a run."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch import Callback
from torch import Tensor, nn

from zoo.cli import main
from zoo.train.callbacks import EMA, LastCheckpoint, RNGState, StopOnSignal, Stopped, newest_checkpoint
from zoo.train.data import DigitsDataModule
from zoo.train.history import History, read_history
from zoo.train.tasks import ImageClassification

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
MakeTrainer = Callable[..., Trainer]
BATCHES = 8  # an epoch


class Crash(Exception):
    pass


class CrashAt(Callback):
    def __init__(self, hook: str, step: int) -> None:
        setattr(self, hook, lambda trainer, *args: self._check(trainer))
        self.step = step

    def _check(self, trainer: Trainer) -> None:
        if trainer.global_step == self.step and not trainer.sanity_checking:
            raise Crash


class SignalAt(CrashAt):
    def __init__(self, hook: str, step: int, number: int) -> None:
        super().__init__(hook, step)
        self.number: int | None = number

    def _check(self, trainer: Trainer) -> None:
        if trainer.global_step == self.step and not trainer.sanity_checking and self.number is not None:
            os.kill(os.getpid(), self.number)
            self.number = None


@pytest.fixture
def fit(toy: type[nn.Module], trainer: MakeTrainer, tmp_path: Path) -> Callable[..., dict[str, Tensor]]:
    """Train the toy in the test's folder, from its checkpoint if it has one; returns all weights."""

    def run(*crash: Callback, seed: int = 0, every_n_steps: int = 3, accumulate: int = 1) -> dict[str, Tensor]:
        seed_everything(seed, verbose=False)
        task = ImageClassification(toy(), lr=0.02, warmup_steps=3, label_smoothing=0.1)
        options: dict[str, Any] = {"max_epochs": 3, "limit_train_batches": BATCHES, "log_every_n_steps": 1}
        options |= {"accumulate_grad_batches": accumulate, "gradient_clip_val": 1.0, "logger": History(tmp_path)}
        made = trainer(RNGState(), EMA(0.8), LastCheckpoint(every_n_steps), *crash, **options)
        data = DigitsDataModule(batch_size=16, seed=seed)
        made.fit(task, datamodule=data, ckpt_path=newest_checkpoint(tmp_path), weights_only=True)
        assert made.global_step == 3 * BATCHES // accumulate
        return {name: tensor.clone() for name, tensor in task.state_dict().items()}

    return run


def start_over(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints")


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_train_batch_end", 5),  # in the first epoch, after the checkpoint of step 3
        ("on_train_batch_start", 14),  # in the second, after that of step 12
        ("on_validation_start", 2 * BATCHES),  # between the second epoch's last batch and its end
        ("on_train_epoch_start", 2 * BATCHES),  # right after an epoch's checkpoint
        ("on_validation_start", 3 * BATCHES),  # after the last step, whose checkpoint is the last
    ],
)
def test_resumed_equals_unbroken(fit: Callable[..., dict[str, Tensor]], tmp_path: Path, hook: str, step: int) -> None:
    whole, losses = fit(), training_losses(tmp_path)
    start_over(tmp_path)
    with pytest.raises(Crash):
        fit(CrashAt(hook, step))
    resumed = fit()
    assert whole.keys() == resumed.keys() and any(name.startswith("average.") for name in whole)
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    assert training_losses(tmp_path) == losses


@pytest.mark.parametrize(
    ("hook", "step", "accumulate", "number"),
    [
        ("on_train_batch_start", 5, 1, signal.SIGTERM),
        ("on_before_backward", 6, 2, signal.SIGINT),  # its first half: the checkpoint is that of the whole step
        ("on_validation_batch_start", 2 * BATCHES, 1, signal.SIGTERM),
        ("on_train_batch_start", 2 * BATCHES - 1, 1, signal.SIGTERM),  # the last of an epoch
    ],
)
def test_stopped_by_a_signal_resumes(fit, tmp_path: Path, hook: str, step: int, accumulate: int, number: int) -> None:
    whole, losses = fit(accumulate=accumulate, every_n_steps=0), training_losses(tmp_path, accumulate)
    start_over(tmp_path)
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="add --resume to continue from") as stopped:
        fit(StopOnSignal(), SignalAt(hook, step, number), accumulate=accumulate, every_n_steps=0)
    assert stopped.value.status == stopped.value.code == 128 + number
    assert signal.getsignal(number) == before, "the handlers are put back"
    saved = torch.load(newest_checkpoint(tmp_path) or "")["global_step"]
    assert saved == step + (hook != "on_validation_batch_start"), "the step under way is finished"
    resumed = fit(accumulate=accumulate, every_n_steps=0)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert training_losses(tmp_path, accumulate) == losses


def test_accumulated_gradients_resume(fit: Callable[..., dict[str, Tensor]], tmp_path: Path) -> None:
    whole = fit(accumulate=2, every_n_steps=1)
    start_over(tmp_path)
    with pytest.raises(Crash):
        fit(CrashAt("on_before_backward", 6), accumulate=2, every_n_steps=1)
    resumed = fit(accumulate=2, every_n_steps=1)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_same_seed_same_weights(fit: Callable[..., dict[str, Tensor]], tmp_path: Path) -> None:
    runs = []
    for seed in (0, 0, 1):
        runs.append(fit(seed=seed))
        start_over(tmp_path)
    assert all(torch.equal(tensor, runs[1][name]) for name, tensor in runs[0].items())
    assert not torch.equal(runs[0]["model.head.weight"], runs[2]["model.head.weight"])


def test_evaluating_more_often_changes_nothing(toy: type[nn.Module], trainer: MakeTrainer, tmp_path: Path) -> None:
    class Noisy(Callback):
        def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            torch.rand(7)

    weights = []
    for interval in (1, 8):
        seed_everything(0, verbose=False)
        task = ImageClassification(toy())
        options = {"max_epochs": 1, "limit_train_batches": 8, "val_check_interval": interval}
        trainer(Noisy(), RNGState(), **options).fit(task, datamodule=DigitsDataModule(batch_size=16))
        weights.append(task.trained.get_parameter("head.weight"))
    assert torch.equal(*weights)


def test_history_drops_a_cut_line_and_what_is_repeated(tmp_path: Path) -> None:
    history = History(tmp_path)
    for step in range(4):
        history.log_metrics({"train/loss": step / 2}, step)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')
    assert [row["step"] for row in read_history(tmp_path)] == [0, 1, 2, 3]
    resumed = History(tmp_path)
    resumed.log_metrics({"train/loss": 7.0}, 2)
    rows = read_history(tmp_path)
    assert [(row["step"], row["train/loss"]) for row in rows] == [(0, 0.0), (1, 0.5), (2, 7.0)]


def training_losses(folder: Path, accumulate: int = 1) -> dict[float, float]:
    rows = [row for row in read_history(folder) if "train/loss" in row]
    steps = {row["step"]: row["train/loss"] for row in rows}
    assert len(steps) == len(rows) == 3 * BATCHES // accumulate
    return steps


@pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning")  # LightningCLI's own calls
@pytest.mark.parametrize("recipe", ["digits_vim_nano", "docs_mamba2_nano", "docs_transformer_nano", "docs_moe_nano"])
def test_a_recipe_resumes_bit_for_bit(recipe: str, tmp_path: Path) -> None:
    options = ["--model.schedule_steps=500", "--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0"]
    options += ["--model.model_args.depth=2", "--data.batch_size=4"]
    options += ["--data.seq_len=64"] if recipe.startswith("docs") else []
    for output, steps in (("whole", 12), ("broken", 6), ("broken", 12)):
        more = ["--trainer.max_steps", str(steps), *(["--resume"] if steps == 12 else [])]
        assert main(["train", recipe, "--output", str(tmp_path / output), *options, *more]) == 0
    whole, broken = (torch.load(newest_checkpoint(tmp_path / run) or "") for run in ("whole", "broken"))
    assert whole["global_step"] == broken["global_step"] == 12
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, broken["state_dict"][name]), name
