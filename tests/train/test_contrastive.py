"""The contrastive loss: in blocks, in parts and over processes it is what it is at once; and what it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._python_dispatch import TorchDispatchMode

import zoo
from cases.contrastive import features, half, value_and_gradients
from zoo.train.callbacks import LastCheckpoint, RNGState, newest_checkpoint
from zoo.train.contrastive import contrastive_loss, in_parts, one_way
from zoo.train.data import DigitViewsDataModule
from zoo.train.parallel import ShardedOptimizer
from zoo.train.tasks import ContrastiveLearning

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
EXACT = {"rtol": 0.0, "atol": 1e-10}


def info_nce(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """As its equation has it, of the whole batch."""
    chances = [(scale * x @ y.mT).softmax(1).diagonal(), (scale * y @ x.mT).softmax(1).diagonal()]
    return -sum(p.log().mean() for p in chances) / 2


@pytest.mark.parametrize("rows", [None, 1, 4, 11, 50])
def test_in_blocks_it_is_the_loss_of_the_whole_batch(rows):
    inputs = features()
    found = value_and_gradients(contrastive_loss(*inputs, rows=rows), inputs)
    for one, other in zip(found, value_and_gradients(info_nce(*inputs), inputs), strict=True):
        torch.testing.assert_close(one, other, **EXACT)


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


def test_the_logits_never_lie_in_memory_together():
    inputs = features(64, 3)
    found = {}
    for rows in (None, 4):
        with Largest() as largest:
            contrastive_loss(*inputs, rows=rows).backward()
        found[rows] = largest.numbers
    assert found == {None: 64 * 64, 4: 4 * 64}


def test_groups_of_processes_by_hand():
    """Each process has three pairs: a group of all has the loss and gradients of all, of one those of its own."""
    x, y, scale = inputs = features(12)
    parts = [slice(3 * rank, 3 * rank + 3) for rank in range(4)]
    ways = [(one_way(x[p], y, scale, p.start, 2), one_way(y[p], x, scale, p.start, 2)) for p in parts]
    whole = torch.stack([(a + b) / 2 for a, b in ways]).mean()
    for one, other in zip(
        value_and_gradients(whole, inputs), value_and_gradients(info_nce(*inputs), inputs), strict=True
    ):
        torch.testing.assert_close(one, other, **EXACT)
    alone = torch.stack([info_nce(x[p], y[p], scale) for p in parts]).mean()
    local = torch.stack([contrastive_loss(x[p], y[p], scale) for p in parts]).mean()
    torch.testing.assert_close(local, alone, **EXACT)


def test_encoded_in_parts_the_model_has_the_same_gradients_and_less_is_kept():
    model: Any = zoo.create_model("vit_nano", num_classes=8, dtype=torch.float64)
    views, kept, gradients = torch.randn(2, 12, 1, 8, 8, dtype=torch.float64), [], []
    parameters = {id(parameter) for parameter in model.parameters()}
    for size in (None, 5):
        saved: list[int] = []

        def note(tensor: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(0 if id(tensor) in parameters else tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            first, second = (in_parts(lambda part: F.normalize(model(part)), view, size) for view in views)
            loss = contrastive_loss(first, second, torch.tensor(5.0, dtype=torch.float64))
        kept.append(sum(saved))
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    assert kept[1] < 0.05 * kept[0]


def test_views_of_digits_find_each_other_and_a_resumed_run_ends_the_same(trainer, tmp_path: Path):
    def run(folder: str, steps: int) -> tuple[dict[str, Tensor], dict[str, float]]:
        torch.manual_seed(0)
        start = {"pretrained": True, "num_classes": 16}
        task = ContrastiveLearning("vit_nano", start, rows=16, lr=1e-3, warmup_steps=4, schedule_steps=12)
        data = DigitViewsDataModule(batch_size=32, eval_batch_size=200)
        options: dict[str, Any] = {"max_steps": steps, "limit_val_batches": 0, "default_root_dir": tmp_path / folder}
        made = trainer(RNGState(), LastCheckpoint(1), **options)
        made.fit(task, data, ckpt_path=newest_checkpoint(tmp_path / folder), weights_only=True)
        scores = trainer().test(task, data, verbose=False)[0]
        return {name: tensor.clone() for name, tensor in task.state_dict().items()}, scores

    whole, scores = run("whole", 12)
    assert scores["test/recall"] > 0.08, "by chance one in 180"
    assert whole["log_scale"] != torch.tensor(1 / 0.07).log() and scores["test/loss"] > 0
    run("parts", 7)
    resumed, _ = run("parts", 12)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_the_scale_stops_at_100_and_comes_back(trainer):
    """A step beyond ends there, where the loss has a gradient that leads back: pairs of noise deserve a small one."""
    task = ContrastiveLearning("vit_nano", {"num_classes": 8}, temperature=0.006)
    trainer(max_steps=1, limit_val_batches=0).fit(task, DigitViewsDataModule(batch_size=16))
    assert task.scale.item() == pytest.approx(100.0)
    x, y = F.normalize(torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0)), dim=2)
    (gradient,) = torch.autograd.grad(contrastive_loss(x, y, task.scale), [task.log_scale])
    assert gradient > 1


@pytest.mark.slow
def test_two_processes(tmp_path: Path):
    mp.spawn(half, (f"file://{tmp_path}/store", str(tmp_path)), nprocs=2)
    (one, x1, y1, s1), (two, x2, y2, s2) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    inputs = features(10)
    found = [(one + two) / 2, torch.cat([x1, x2]) / 2, torch.cat([y1, y2]) / 2, (s1 + s2) / 2]
    for part, expected in zip(found, value_and_gradients(info_nce(*inputs), inputs), strict=True):
        torch.testing.assert_close(part, expected, **EXACT)


def test_the_scale_learns_where_processes_share_the_optimiser(tmp_path: Path):
    """Its group, added later, has the rate of the others."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        task = ContrastiveLearning("vit_nano", {"num_classes": 8}, lr=0.01)
        task.configure_model()
        optimizer = task._optimizer(task.trained, around=ShardedOptimizer)
        LambdaLR(optimizer, lambda step: 1.0)
        before, task.log_scale.grad = task.log_scale.item(), torch.ones(())
        optimizer.step()
        assert task.log_scale.item() == pytest.approx(before - 0.01)
    finally:
        dist.destroy_process_group()


def test_errors():
    with pytest.raises(ValueError, match="temperature must be above 0"):
        ContrastiveLearning("vit_nano", temperature=0.0)
    with pytest.raises(ValueError, match="rows must be at least 1"):
        ContrastiveLearning("vit_nano", rows=-1)
