"""Several tasks at once: the generated scenes, the losses of known targets, metrics over a split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer

import zoo
from zoo.train.data import ShapesDataModule
from zoo.train.tasks import MultiTask
from zoo.train.tasks.multi_task import measure

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
SMALL: dict[str, Any] = {"dim": 32, "depth": 2, "decoder_dim": 8}


def test_scenes_are_functions_of_their_number_and_near_shapes_hide_far_ones():
    data = ShapesDataModule()
    data.setup()
    images, targets = data.sources["val"].fetch(torch.arange(64), 0)
    kinds, depth = targets["semseg"], targets["depth"]
    assert images.shape == (64, 1, 16, 16) and kinds.shape == (64, 16, 16) and depth.shape == (64, 1, 16, 16)
    assert torch.equal(data.sources["val"].fetch(torch.tensor([7]), 5)[0], images[7:8])
    assert set(kinds.unique().tolist()) == {0, 1, 2} and torch.equal(kinds == 0, depth[:, 0] == 1)
    assert all(len(one.unique()) <= 4 for one in depth) and any(len(one.unique()) == 4 for one in depth)
    assert ((images - (1 - depth)).abs() <= 0.3 + 1e-6).all()
    train = data.sources["train"]
    assert not torch.equal(train.fetch(torch.arange(2), 0)[0], train.fetch(torch.arange(2), 1)[0])
    with pytest.raises(ValueError, match="side must be >= 8"):
        ShapesDataModule(side=4)


def test_unknown_targets_do_not_count():
    logits, target = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randint(0, 3, (2, 4, 4))
    target[0, :2] = -100
    loss, right, known = measure(logits, target)
    torch.testing.assert_close(loss, F.cross_entropy(logits, target))
    assert known == 24 and right is not None
    assert right == (logits.argmax(1) == target)[target != -100].float().mean()
    output, depth = torch.randn(2, 1, 4, 4, requires_grad=True), torch.rand(2, 1, 4, 4)
    depth[1, 0, 0, 0] = torch.nan
    loss, right, known = measure(output, depth)
    torch.testing.assert_close(loss, (output - depth).abs().nanmean())
    assert right is None and known == 31
    assert torch.autograd.grad(loss, output)[0].isfinite().all()


def test_metrics_are_means_over_the_split_and_losses_are_weighted(trainer: Callable[..., Trainer]):
    data = ShapesDataModule(side=8, eval_batch_size=8, val_samples=20)
    task = MultiTask("m3vit_nano", SMALL | data.demands, task_weights={"depth": 3.0})
    metrics = trainer().validate(task, datamodule=data, verbose=False)[0]
    images, targets = data.sources["val"].fetch(torch.arange(20), 0)
    with torch.no_grad():
        outputs = task.trained.eval()(images)
    semseg = F.cross_entropy(outputs["semseg"], targets["semseg"]).item()
    depth = F.l1_loss(outputs["depth"], targets["depth"]).item()
    right = (outputs["semseg"].argmax(1) == targets["semseg"]).float().mean().item()
    assert metrics == pytest.approx(
        {"val/semseg": semseg, "val/depth": depth, "val/semseg_acc": right, "val/loss": semseg + 3 * depth}, rel=1e-5
    )


def test_every_task_and_its_router_learn_from_a_step(trainer: Callable[..., Trainer]):
    data = ShapesDataModule(side=8, batch_size=4, train_samples=8, val_samples=4)
    task = MultiTask("m3vit_nano", SMALL | data.demands, lr=1e-2)
    task.configure_model()
    before = {name: tensor.clone() for name, tensor in task.trained.state_dict().items()}
    trainer(max_steps=1).fit(task, datamodule=data)
    still = {name for name, p in task.trained.named_parameters() if torch.equal(p.detach(), before[name])}
    assert not still


def test_tasks_that_differ_are_named():
    data = ShapesDataModule(side=8)
    data.setup()
    batch = data.sources["val"].fetch(torch.arange(2), 0)
    task = MultiTask("m3vit_nano", SMALL | data.demands | {"dense_tasks": {"semseg": 3, "normals": 3}})
    task.configure_model()
    with pytest.raises(ValueError, match=r"the model has \['normals', 'semseg'\], the data \['depth', 'semseg'\]"):
        task.training_step(batch, 0)


def test_a_saved_model_answers_each_task(tmp_path):
    model: Any = zoo.create_model("m3vit_nano", **SMALL, **ShapesDataModule(side=8).demands)
    again: Any = zoo.create_model(f"local-dir:{zoo.save_model(model, tmp_path)}").eval()
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(again(x)["depth"], model.eval()(x, "depth"))
