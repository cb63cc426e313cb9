"""Image generation: the loss, its average over images, and one random channel at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer

from zoo.train.data import DigitLevelsDataModule
from zoo.train.tasks import ImageGeneration

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
TINY = {"dim": 16, "num_heads": 2, "outer_depth": 2, "inner_depth": 1, "logits_scale": 1.0}


def test_bits_per_dim_count_every_image_once(trainer: Callable[..., Trainer]) -> None:
    task, data = ImageGeneration("axial_nano", TINY), DigitLevelsDataModule(eval_batch_size=100)
    metrics = trainer().validate(task, datamodule=data, verbose=False)[0]
    images = data.sources["val"].fetch(torch.arange(143), 0)[0]
    with torch.no_grad():
        logits = task.trained.eval()(images).double()
    nats = float(F.cross_entropy(logits.flatten(0, -2), images.flatten()))
    assert metrics["val/loss"] == pytest.approx(nats, rel=1e-5)
    assert metrics["val/bits_per_dim"] == pytest.approx(nats / math.log(2), rel=1e-5)


def test_training_may_score_one_channel_of_each_image() -> None:
    task = ImageGeneration("axial_nano", {"in_chans": 3, "exterior_depth": 2, **TINY}, random_channel=True)
    task.configure_model()
    task.log_dict = lambda *_, **__: None  # pyright: ignore[reportAttributeAccessIssue]
    images = torch.randint(17, (4, 3, 8, 8))
    torch.manual_seed(1)
    loss = task.training_step((images, images), 0)
    torch.manual_seed(1)
    channels = torch.randint(3, (4,))
    assert channels.unique().numel() > 1
    torch.testing.assert_close(loss, task.trained(images, labels=images, channels=channels))
