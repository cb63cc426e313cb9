"""Regression of vectors: the error over a split and of each output, and models that take over what the data demand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lightning import Trainer

from zoo.train.agreement import agree
from zoo.train.data import ArraysDataModule, ScenesDataModule
from zoo.train.tasks import SequenceRegression

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]


def test_errors_count_every_output_once(trainer: Callable[..., Trainer]):
    data = ScenesDataModule(eval_batch_size=8, val_samples=20)
    task = SequenceRegression("drope_nano", {"dim": 16, "num_heads": 2}, names=["from_right", "near"])
    metrics = trainer().validate(task, datamodule=data, verbose=False)[0]
    scenes, targets = data.sources["val"].fetch(torch.arange(20), 0)
    with torch.no_grad():
        errors = (task.trained.eval()(scenes) - targets).square()
    assert metrics["val/loss"] == pytest.approx(errors.mean().item(), rel=1e-5)
    assert metrics["val/from_right"] == pytest.approx(errors[..., 0].mean().item(), rel=1e-5)
    assert metrics["val/near"] == pytest.approx(errors[..., 1].mean().item(), rel=1e-5)


def test_the_model_is_as_long_as_the_arrays():
    task = SequenceRegression("positional_nano")
    agree(task, ArraysDataModule(length=12))
    assert task.sketch().config.length == 12  # pyright: ignore
