"""Search for cells: the mixed operation, what a cell is left with, and that weights and architecture learn in turns."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from lightning import seed_everything
from lightning.pytorch import Callback

import zoo
from zoo.layers.conv.cell import OPERATIONS
from zoo.layers.conv.mixed import MixedOperation, SearchCell, Strengths
from zoo.train.callbacks import ExportModel, LastCheckpoint, newest_checkpoint
from zoo.train.data import DigitsDataModule
from zoo.train.tasks import ArchitectureSearch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:The `srun` command"),
]
TWO_NODES = [("sep_conv_3x3", 0), ("skip_connect", 1)] * 2
SMALL = {"dims": (16, 32), "depths": (1, 1), "stem_dim": 8, "normal": TWO_NODES, "reduce": TWO_NODES}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("share", [1, 4])
def test_mixed_operation_written_out(stride, share):
    layer = MixedOperation(24, stride, share).double().train()
    x, weights = torch.randn(2, 24, 7, 8, dtype=torch.float64), torch.rand(8, dtype=torch.float64)
    found, part = layer(x, weights), 24 // share
    mixed = sum(weights[1 + i] * op(x[:, :part]) for i, op in enumerate(layer.ops))
    for channel in range(24):
        old = part * (channel % share) + channel // share  # where the shuffle took it from
        if old < part:
            expected = mixed[:, old]
        elif stride == 1:
            expected = x[:, old]
        else:
            padded = torch.nn.functional.pad(x[:, old], (0, 0, 0, 1), value=-torch.inf)
            expected = padded.unfold(1, 2, 2).unfold(2, 2, 2).amax((3, 4))
        torch.testing.assert_close(found[:, channel], expected)


def test_strengths_and_the_cell_that_is_left():
    strengths = Strengths(3)
    torch.nn.init.normal_(strengths.alpha)
    torch.nn.init.normal_(strengths.beta)
    operations, edges = strengths()
    starts = [0, 2, 5, 9]
    for node, (start, end) in enumerate(pairwise(starts)):
        torch.testing.assert_close(edges[start:end].sum(), torch.tensor(1.0))
        ways = {
            (name, source): (operations[start + source, 1 + index] * edges[start + source]).item()
            for source in range(end - start)
            for index, name in enumerate(OPERATIONS)
        }
        best = [max((s for s in ways.items() if s[0][1] == source), key=lambda s: s[1]) for source in range(2 + node)]
        expected = [way for way, _ in sorted(best, key=lambda s: -s[1])[:2]]
        assert list(strengths.edges()[2 * node : 2 * node + 2]) == expected
    torch.testing.assert_close(operations.sum(1), torch.ones(9))


def test_a_cell_adds_up_its_weighted_edges():
    strengths = Strengths(2).double()
    torch.nn.init.normal_(strengths.beta)
    cell = SearchCell((6, 4), 8, strengths, reduction=True).double()
    first, second = torch.randn(2, 6, 4, 4, dtype=torch.float64), torch.randn(2, 4, 4, 4, dtype=torch.float64)
    a, b = strengths()
    x0, x1 = cell.preprocess0(first), cell.preprocess1(second)
    x2 = b[0] * cell.ops[0](x0, a[0]) + b[1] * cell.ops[1](x1, a[1])
    x3 = b[2] * cell.ops[2](x0, a[2]) + b[3] * cell.ops[3](x1, a[3]) + b[4] * cell.ops[4](x2, a[4])
    passed, found = cell((first, second))
    assert passed is second and found.shape == (2, 16, 2, 2)
    torch.testing.assert_close(found, torch.cat([x2, x3], 1))


class Watch(Callback):
    """The strengths and one weight after every step."""

    def __init__(self):
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        net = pl_module.supernet
        self.seen.append([t.detach().clone() for t in (*net.architecture(), net.head.weight)])


def test_weights_and_architecture_learn_in_turns_and_a_resumed_search_ends_the_same(trainer, tmp_path):
    def search(epochs: int, folder: Any) -> tuple[Watch, ArchitectureSearch]:
        seed_everything(0, verbose=False)
        task, watch = ArchitectureSearch("pcdarts_nano", SMALL, architecture_lr=0.1, architecture_warmup=1), Watch()
        options = {"max_epochs": epochs, "limit_train_batches": 2, "limit_val_batches": 0}
        run = trainer(watch, ExportModel(), LastCheckpoint(2), default_root_dir=str(folder), **options)
        task.schedule_steps = 4
        run.fit(task, DigitsDataModule(batch_size=8, val_fraction=0.5), ckpt_path=newest_checkpoint(folder))
        return watch, task

    whole, task = search(2, tmp_path / "whole")
    weights = [tensors.pop() for tensors in whole.seen]
    assert all(not torch.equal(one, other) for one, other in pairwise(weights))
    warm, first, second = whole.seen[1], whole.seen[2], whole.seen[3]
    assert all(torch.equal(one, other) for one, other in zip(whole.seen[0], warm, strict=True))
    for before, after in ((warm, first), (first, second)):
        assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not any(p.requires_grad for p in task.supernet.architecture())

    search(1, tmp_path / "parts")
    resumed, _ = search(2, tmp_path / "parts")
    assert all(torch.equal(one, other) for one, other in zip(resumed.seen[-1], [*second, weights[-1]], strict=True))

    found: Any = zoo.create_model(f"local-dir:{tmp_path / 'whole' / 'model'}")
    genotype = task.supernet.genotype
    assert found.config.normal == tuple(genotype.normal) and found.config.reduce == tuple(genotype.reduce)
    assert found.config.mean == (0.305,) and genotype.normal_concat == range(2, 4)
    assert found(torch.randn(1, 1, 8, 8)).shape == (1, 10)


def test_errors(trainer):
    with pytest.raises(TypeError, match="cells are sought for a model of the family pcdarts, got a ViTConfig"):
        ArchitectureSearch("vit_nano")
    with pytest.raises(ValueError, match=r"dim must be a multiple of 2 \* share, got dim 16, share 3"):
        ArchitectureSearch("pcdarts_nano", share=3)
    with pytest.raises(ValueError, match=r"warm-up at least 0, got 0\.0006, 0\.001, -1"):
        ArchitectureSearch("pcdarts_nano", architecture_warmup=-1)
    with pytest.raises(ValueError, match=r"held-out samples: take data with val_fraction 0\.5"):
        trainer(max_epochs=1).fit(ArchitectureSearch("pcdarts_nano", SMALL), DigitsDataModule(val_fraction=0.0))
