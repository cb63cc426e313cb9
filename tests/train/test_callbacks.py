"""Averaging, the guard against NaNs, throughput, checkpoints put in place whole, export."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import zoo
from zoo.train.callbacks import EMA, ExportModel, LastCheckpoint, NaNGuard, NonFiniteError, Throughput, ValidateAtEnd
from zoo.train.callbacks.checkpoint import _replace, newest_checkpoint
from zoo.train.callbacks.rng import capture, restore
from zoo.train.data import DigitsDataModule
from zoo.train.history import History, read_history
from zoo.train.tasks import ImageClassification

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
MakeTrainer = Callable[..., Trainer]


class Record(Callback):
    """The weights after every optimiser step."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step > len(self.weights):
            assert isinstance(pl_module, ImageClassification)
            self.weights.append(pl_module.trained.get_parameter("head.weight").detach().clone())


def test_ema_follows_its_equation(toy: type[nn.Module], trainer: MakeTrainer) -> None:
    task, record = ImageClassification(toy(), lr=0.05), Record()
    task.configure_model()
    start = task.trained.get_parameter("head.weight").detach().clone()
    task.model, task.build = None, lambda model=task.model: model  # pyright: ignore[reportAttributeAccessIssue]
    options = {"max_epochs": 1, "limit_train_batches": 12, "limit_val_batches": 0, "accumulate_grad_batches": 2}
    trainer(record, EMA(0.4), **options).fit(task, datamodule=DigitsDataModule(batch_size=16))
    assert len(record.weights) == 6
    expected = start
    for step, weight in enumerate(record.weights, start=1):
        decay = min(0.4, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    assert task.average is not None
    torch.testing.assert_close(task.average.get_parameter("head.weight"), expected)
    assert not torch.equal(expected, record.weights[-1])
    assert task.average.get_buffer("seen") == task.trained.get_buffer("seen") == 12 * 16


def test_evaluation_uses_the_average(toy: type[nn.Module], trainer: MakeTrainer) -> None:
    task, data = ImageClassification(toy()), DigitsDataModule(batch_size=16)
    run = trainer(EMA(0.9), max_epochs=1, limit_train_batches=3)
    run.fit(task, datamodule=data)
    with torch.no_grad():
        assert task.average is not None
        task.average.get_parameter("head.bias")[3] += 1e4
    metrics = run.validate(task, datamodule=data, verbose=False)[0]
    assert metrics["val/acc1"] == pytest.approx(0.1, abs=0.02), "all images are class 3 to the average"


def test_ema_needs_a_task(trainer: MakeTrainer) -> None:
    with pytest.raises(TypeError, match="Task"):
        EMA().setup(trainer(), LightningModule(), "fit")
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
        EMA(1.0)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_guard_stops_names_and_saves(
    toy: type[nn.Module], trainer: MakeTrainer, tmp_path: Path, where: str
) -> None:
    task = ImageClassification(toy())
    task.configure_model()

    class Break(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, index: int) -> None:
            if trainer.global_step == 2:
                self.before = task.trained.get_parameter("blocks.0.weight").detach().clone()
                if where == "loss":
                    batch[0][0] = torch.inf

        def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.global_step == 2 and where == "gradient":
                gradient = task.trained.get_parameter("blocks.1.weight").grad
                assert gradient is not None
                gradient[0, 0] = torch.nan

    breaking = Break()
    with pytest.raises(NonFiniteError) as raised:
        run = trainer(breaking, NaNGuard(), max_epochs=1)
        run.fit(task, datamodule=DigitsDataModule(batch_size=16))
    path = tmp_path / "nonfinite-step2.pt"
    assert "step 2" in str(raised.value) and str(path) in str(raised.value) and "\n" not in str(raised.value)
    state = torch.load(path)
    assert state["step"] == 2 and state["batch"][0].shape == (16, 1, 8, 8)
    assert torch.equal(state["state_dict"]["model.blocks.0.weight"], breaking.before)
    if where == "loss":
        assert "loss nan" in str(raised.value) and "blocks.0.weight" in state["bad_gradients"]
    else:
        assert state["bad_gradients"] == ["blocks.1.weight"] and np.isfinite(state["loss"])
    assert state["bad_parameters"] == []


def test_gradient_norm_is_logged(toy: type[nn.Module], trainer: MakeTrainer, tmp_path: Path) -> None:
    task = ImageClassification(toy(dropout=0.0), lr=1e-9)
    task.configure_model()
    data = DigitsDataModule(batch_size=16)
    options = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 0, "log_every_n_steps": 1}
    trainer(NaNGuard(), logger=History(tmp_path), **options).fit(task, datamodule=data)
    loader = DigitsDataModule(batch_size=16).train_dataloader()
    task.train().zero_grad()
    task.log = task.log_dict = lambda *_, **__: None  # pyright: ignore[reportAttributeAccessIssue]
    task.training_step(next(iter(loader)), 0).backward()
    norm = torch.stack([p.grad.norm() for p in task.trained.parameters() if p.grad is not None]).norm()
    assert read_history(tmp_path)[0]["train/grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_throughput_counts_flops_items_and_time(trainer: MakeTrainer, tmp_path: Path) -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10, bias=False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(images.flatten(1))

    callback = Throughput(every_n_steps=5, peak_flops=1e12)
    options = {"max_epochs": 1, "limit_train_batches": 11, "limit_val_batches": 0, "log_every_n_steps": 1}
    run = trainer(callback, logger=History(tmp_path), **options)
    run.fit(ImageClassification(Linear()), datamodule=DigitsDataModule(batch_size=16))
    # forward 2 B I O; backward the weight's gradient alone, as the input needs none
    assert callback.flops_per_batch == 2 * (2 * 16 * 64 * 10)
    rows = {row["step"]: row for row in read_history(tmp_path) if "train/mfu" in row}
    assert min(rows) == 5, "the first batch is counted, the next five are timed"
    for row in (rows[5], rows[10]):
        batches_per_second = row["train/images_per_second"] / 16
        assert row["train/mfu"] == pytest.approx(batches_per_second * callback.flops_per_batch / 1e12, rel=1e-4)
        assert row["train/tflops_per_second"] == pytest.approx(row["train/mfu"], rel=1e-4)


def test_counting_flops_leaves_training_as_it_was(toy: type[nn.Module], trainer: MakeTrainer) -> None:
    ends = []
    for count in (True, False):
        torch.manual_seed(3)
        task, callback = ImageClassification(toy(), lr=0.05), Throughput(count_flops=count, peak_flops=1e12)
        run = trainer(callback, max_epochs=1, limit_train_batches=3, limit_val_batches=0)
        run.fit(task, datamodule=DigitsDataModule(batch_size=16))
        assert bool(callback.flops_per_batch) == count
        ends.append({**task.state_dict(), "random": torch.rand(3)})
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_checkpoint_takes_its_name_when_complete(
    toy: type[nn.Module], trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback, run = LastCheckpoint(every_n_steps=2), None
    run = trainer(callback, max_epochs=1, limit_train_batches=5, limit_val_batches=0)
    run.fit(ImageClassification(toy()), datamodule=DigitsDataModule(batch_size=16))
    target = newest_checkpoint(tmp_path)
    assert target == tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(target, weights_only=True)["global_step"] == 5
    assert [path.name for path in target.parent.iterdir()] == ["last.ckpt"]
    whole = target.read_bytes()

    def dies_half_way(path: Path, **options: Any) -> None:
        path.write_bytes(whole[: len(whole) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "save_checkpoint", dies_half_way)
    with pytest.raises(KeyboardInterrupt):
        callback.save(run)
    assert newest_checkpoint(tmp_path) == target and target.read_bytes() == whole
    target.write_bytes(whole[: len(whole) // 2])
    assert newest_checkpoint(tmp_path) is None, "a truncated file is no checkpoint"


def test_folders_are_replaced_with_one_always_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "checkpoints" / "last.ckpt"

    def write(content: str) -> Path:
        folder = target.with_suffix(".tmp")
        folder.mkdir(parents=True)
        for name in (".metadata", "meta.pt"):
            (folder / name).write_text(content)
        return folder

    def content() -> str | None:
        found = newest_checkpoint(tmp_path)
        return None if found is None else (found / "meta.pt").read_text()

    _replace(write("first"), target)
    assert content() == "first"
    _replace(write("second"), target)
    assert content() == "second" and [path.name for path in target.parent.iterdir()] == ["last.ckpt"]

    monkeypatch.setattr("zoo.train.callbacks.checkpoint._flush", lambda path: None)
    replace = os.replace

    def dies_between(source: Path, destination: Path) -> None:
        if destination == target:
            raise KeyboardInterrupt
        replace(source, destination)

    monkeypatch.setattr("os.replace", dies_between)
    with pytest.raises(KeyboardInterrupt):
        _replace(write("third"), target)
    assert content() == "second"
    monkeypatch.setattr("os.replace", replace)
    _replace(target.with_suffix(".tmp"), target)
    assert content() == "third" and [path.name for path in target.parent.iterdir()] == ["last.ckpt"]


def test_generators_are_restored() -> None:
    state = capture()
    drawn = random.random(), np.random.rand(), torch.rand(())
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    restore(torch.load(file, weights_only=True))
    assert (random.random(), np.random.rand(), torch.rand(())) == drawn


def test_export_is_the_average(trainer: MakeTrainer, tmp_path: Path) -> None:
    task = ImageClassification("vit_nano", {"drop_path_rate": 0.1})
    run = trainer(EMA(0.9), ExportModel(), max_epochs=1, limit_train_batches=2, limit_val_batches=0)
    data = DigitsDataModule(batch_size=16)
    data.save_tokenizer = lambda folder: (folder / "tokenizer.json").touch()  # pyright: ignore
    run.fit(task, datamodule=data)
    assert (tmp_path / "model" / "tokenizer.json").exists()
    loaded = zoo.create_model(f"local-dir:{tmp_path / 'model'}")
    assert task.average is not None and loaded.config.drop_path_rate == 0.1  # pyright: ignore
    for name, tensor in task.average.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert not torch.equal(task.trained.state_dict()["head.weight"], loaded.state_dict()["head.weight"])


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-true", None), ("32-true", torch.bfloat16)], ids=["trainer", "model"]
)
def test_average_of_a_bfloat16_model_is_exact(
    toy: type[nn.Module], trainer: MakeTrainer, precision: str, dtype: torch.dtype | None
) -> None:
    """Against the same average of the same weights in float64: errors are those of float32."""

    class Exact(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            weights = {name: p.detach().double() for name, p in pl_module.trained.named_parameters()}
            self.average = {name: 0.999 * self.average[name] + 0.001 * p for name, p in weights.items()}

        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            self.average = {name: p.detach().double() for name, p in pl_module.average.named_parameters()}
            self.start = self.average

    class Rounded(Callback):
        def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            assert {p.dtype for p in pl_module.evaluated.parameters()} == {torch.bfloat16}

    model = toy(dropout=0.0).to(dtype or torch.float32)
    forward = model.forward
    model.forward = lambda images: forward(images.bfloat16())
    task, exact = ImageClassification(model, lr=3e-3), Exact()
    options = {"max_epochs": 2, "precision": precision, "limit_val_batches": 1}
    run = trainer(exact, EMA(0.999, ramp=False), Rounded(), **options)
    run.fit(task, datamodule=DigitsDataModule(batch_size=16))
    assert {p.dtype for p in task.trained.parameters()} == {torch.bfloat16} and not task.rounded
    assert task.average is not None
    for name, average in task.average.named_parameters():
        assert average.dtype == torch.float32
        moved = (exact.average[name] - exact.start[name]).norm()
        assert (average.double() - exact.average[name]).norm() < 1e-3 * moved, name


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("resumed", [False, True])
def test_the_last_epoch_is_validated_also_when_resumed_within_it(
    toy: type[nn.Module], trainer: MakeTrainer, tmp_path: Path, resumed: bool
) -> None:
    data, path = DigitsDataModule(batch_size=16), None
    kept = [ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=7)]
    options = {"max_epochs": 2, "limit_train_batches": 4, "limit_val_batches": 1, "check_val_every_n_epoch": 5}
    if resumed:
        trainer(*kept, **options).fit(ImageClassification(toy()), datamodule=data)
        path = tmp_path / "step=7.ckpt"
    run = trainer(*kept, ValidateAtEnd(), **options)
    run.fit(ImageClassification(toy()), datamodule=data, ckpt_path=path)
    assert run.global_step == 8 and "val/loss" in run.callback_metrics
