"""Segmentation: the generated volumes, the loss, and the Dice coefficient over a split."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lightning import Trainer
from torchmetrics.segmentation import DiceScore

from zoo.train.data import EllipsoidsDataModule
from zoo.train.tasks import Segmentation
from zoo.train.tasks.segmentation import dice, segmentation_loss

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]


def test_volumes_are_functions_of_their_number_and_brightness_alone_does_not_tell():
    data = EllipsoidsDataModule()
    data.setup()
    volumes, masks = data.sources["val"].fetch(torch.arange(64), 0)
    again = data.sources["val"].fetch(torch.tensor([7, 3]), 5)
    assert torch.equal(again[0], volumes[[7, 3]]) and torch.equal(again[1], masks[[7, 3]])
    assert volumes.shape == (64, 1, 16, 16, 16) and masks.shape == (64, 2, 16, 16, 16)
    assert set(masks.unique().tolist()) == {0, 1} and (masks[:, 1] <= masks[:, 0]).all()
    assert masks.flatten(2).any(2).all()
    train = data.sources["train"]
    assert not torch.equal(train.fetch(torch.arange(2), 0)[1], train.fetch(torch.arange(2), 1)[1])
    by_brightness = [
        dice((volumes > level).float().expand_as(masks), masks).mean() for level in torch.arange(0, 2.5, 0.1)
    ]
    assert max(by_brightness) < 0.35


def test_dice_is_that_of_torchmetrics():
    predicted, masks = (torch.rand(2, 6, 2, 4, 4, 4) > 0.6).float()
    metric = DiceScore(num_classes=2, average="macro", input_format="one-hot")
    metric.update(predicted.long(), masks.long())
    torch.testing.assert_close(dice(predicted, masks).mean(), metric.compute(), atol=1e-5, rtol=1e-5)
    assert torch.equal(dice(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2)), torch.ones(1, 1))
    assert segmentation_loss(20 * (2 * masks - 1), masks).max() < 1e-4


def test_metrics_count_every_volume_once(trainer: Callable[..., Trainer]):
    data = EllipsoidsDataModule(side=8, eval_batch_size=8, val_samples=20)
    task = Segmentation("revunet3d_nano", {"dims": (8, 16), "expand_ratio": 2, "num_groups": 2, "img_size": 8})
    metrics = trainer().validate(task, datamodule=data, verbose=False)[0]
    volumes, masks = data.sources["val"].fetch(torch.arange(20), 0)
    with torch.no_grad():
        logits = task.trained.eval()(volumes)
    assert metrics["val/dice"] == pytest.approx(float(dice((logits > 0).float(), masks).mean()), rel=1e-5)
    assert metrics["val/loss"] == pytest.approx(float(segmentation_loss(logits, masks).mean()), rel=1e-5)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="side must be >= 8"):
        EllipsoidsDataModule(side=4)
    with pytest.raises(ValueError, match="val_samples=0"):
        EllipsoidsDataModule(val_samples=0)
