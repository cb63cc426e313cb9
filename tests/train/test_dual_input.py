"""Training in two stages, and from the last layer backwards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import zoo
from zoo.train.callbacks import ProgressiveUnfreezing
from zoo.train.data import DigitsDataModule
from zoo.train.memory import Memory
from zoo.train.tasks import DualInputClassification
from zoo.train.tasks.dual_input import distorted

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
LAYERS = ["head", "join", "branch_heads", "blocks.1", "blocks.0"]


def test_stages_and_unfreezing():
    """Parameters that learn, epoch by epoch: all 14,862, then from the last layer backwards."""
    model: Any = zoo.create_model("lightcnn_mnist")
    callback = ProgressiveUnfreezing(LAYERS, first_epoch=1)
    task = DualInputClassification(model, dual_epochs=1)
    task.configure_model()
    counts = []
    for epoch in range(7):
        callback.on_train_epoch_start(SimpleNamespace(current_epoch=epoch), task)
        counts.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
    assert counts == [14_862, 330, 1_002, 11_022, 14_662, 14_862, 14_862]
    callback.on_train_start(SimpleNamespace(current_epoch=2), task)  # of a run that was resumed within an epoch
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 1_002


def test_frozen_layers_stay_and_the_first_stage_leaves_what_joins(trainer):
    torch.manual_seed(0)
    model: Any = zoo.create_model("lightcnn_nano")
    task = DualInputClassification(model, dual_epochs=1, lr=1e-2, weight_decay=0.1)
    snapshots: list[dict[str, torch.Tensor]] = []

    class Snapshots(ProgressiveUnfreezing):
        def on_train_epoch_end(self, trainer, pl_module):
            snapshots.append({name: t.clone() for name, t in model.state_dict().items()})

    run = trainer(Snapshots(["head", "join"], first_epoch=1), max_epochs=3, limit_train_batches=3, limit_val_batches=0)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    run.fit(task, DigitsDataModule(batch_size=32))

    def moved(index: int) -> set[str]:
        earlier = snapshots[index - 1] if index else before
        return {name.split(".")[0] for name, t in snapshots[index].items() if not torch.equal(t, earlier[name])}

    assert moved(0) == {"blocks", "branch_heads"}
    assert moved(1) == {"head"}
    assert moved(2) == {"head", "join", "blocks", "branch_heads"}


def test_both_stages_train_in_less_memory(trainer):
    passes = []

    class Counted(Memory):
        def forward(self, model):
            passes.append(model)
            return super().forward(model)

    task = DualInputClassification("lightcnn_nano", dual_epochs=1)
    task.memory = (Counted(),)
    run = trainer(max_epochs=2, limit_train_batches=1, limit_val_batches=1)
    run.fit(task, DigitsDataModule(batch_size=32))
    assert passes == [task.model] * 2


def test_distortions():
    x = torch.randn(4, 1, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(distorted(x, 0, 0, 0, 0), x)
    torch.manual_seed(0)
    quarter = distorted(x, 90, 0, 0, 0)
    assert not torch.allclose(quarter[0], quarter[1]) and not torch.allclose(quarter, x)
    ratio = distorted(x, 0, 0, 0, 0.5) / x
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(x))
    assert ratio.min() >= 0.5 and ratio.max() <= 1.5 and ratio[:, 0, 0, 0].unique().numel() == 4


def test_errors_of_training():
    with pytest.raises(ValueError, match="layers must not be empty"):
        ProgressiveUnfreezing([])
    with pytest.raises(ValueError, match=r"zoom below 1, got dual_epochs 10, rotation 10\.0, zoom 1\.5"):
        DualInputClassification("lightcnn_nano", zoom=1.5)
    task = DualInputClassification(zoo.create_model("lightcnn_nano"))
    task.configure_model()
    with pytest.raises(ValueError, match=r"no parameter's name begins with \['tail'\]"):
        ProgressiveUnfreezing(["head", "tail"]).on_train_start(SimpleNamespace(), task)
    model: Any = task.trained
    with pytest.raises(ValueError, match="global_pool must be 'flatten', or '' without classes, got 'avg'"):
        model.reset_classifier(3, "avg")
