"""ConPET: what a task costs, what earlier tasks keep, and which experts are asked."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import zoo
from zoo.adapt import PaCA
from zoo.train.adapt import ContinualClassification, DynamicConPET, StaticConPET
from zoo.train.adapt.continual import HIDDEN
from zoo.train.data import DigitStreamDataModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
SMALL = {"dim": 16, "depth": 2, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 16}


def task(number: int, count: int = 24) -> tuple[Tensor, Tensor]:
    """Classes 2 n and 2 n + 1, told by the bytes that a text is made of."""
    generator = torch.Generator().manual_seed(number)
    y = torch.arange(count) % 2 + 2 * number
    return 20 * y[:, None] + torch.randint(10, (count, 6), generator=generator), y


def made(kind: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(zoo.create_model("transformer_nano", **SMALL), PaCA(rank=4), steps=40, batch_size=8, lr=1e-2, **options)


@pytest.mark.parametrize("kind", [StaticConPET, DynamicConPET])
def test_a_stream_is_learnt_at_a_constant_cost(kind, monkeypatch):
    model, steps = made(kind), []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *args: steps.append(1) or step(self, *args))
    before = {key: tensor.clone() for key, tensor in model.features.state_dict().items()}
    for number in range(3):
        model.learn(*task(number))
        assert len(steps) == 40 * (number + 1) and [len(x) for x, _ in model.remembered] == [24] * (number + 1)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.features.state_dict().items())
    x, y = (torch.cat(part) for part in zip(*(task(number) for number in range(3)), strict=True))
    assert model(x).shape == (72, 6) and (model(x).argmax(1) == y).float().mean() > 0.9


def test_what_was_learnt_stays_when_another_task_follows():
    model = made(DynamicConPET, top_k=9)
    model.learn(*task(0))
    x = task(0)[0]
    first, rows = model(x), model.selector.head.weight.detach().clone()
    copied = copy.deepcopy(model.selector)
    copied.grow(1)
    assert torch.equal(copied.head.weight[:1], rows) and copied.head.out_features == 2
    model.learn(*task(1))
    assert torch.equal(model(x)[:, :2], first), "to the bit, where all are asked"
    assert (model(x) > HIDDEN).all()
    model.top_k = 1
    found = model(x)
    assert ((found == HIDDEN).sum(1) == 2).all()
    asked = model.asked(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]))
    assert asked.nonzero()[:, 1].tolist() == [0, 1, 1, 0]


def test_experts_answer_all_their_items_at_once_as_alone():
    model = made(DynamicConPET)
    for number in range(2):
        model.learn(*task(number))
    x = torch.cat([task(0)[0][:3], task(1)[0][:3]])
    torch.testing.assert_close(model(x), torch.cat([model(part[None]) for part in x]))


def test_images_and_wrong_classes():
    model = StaticConPET(zoo.create_model("vit_nano"), PaCA(rank=2), steps=1, batch_size=2)
    model.learn(torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 1]))
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 3) and isinstance(model.expert, nn.Module)
    with pytest.raises(ValueError, match="the classes of this task begin at 3, got 2"):
        model.learn(torch.randn(2, 1, 8, 8), torch.tensor([2, 3]))


@torch.no_grad()
@pytest.mark.parametrize("kind", [StaticConPET, DynamicConPET])
def test_texts_that_are_filled_behind_are_read_at_their_ends(kind):
    """As they are alone; in the precision of the model."""
    model = kind(zoo.create_model("mamba2_nano", dtype=torch.float64), PaCA(rank=2), steps=1, batch_size=2, pad=0)
    with torch.enable_grad():
        for number in range(2):
            model.learn(*task(number, 4))
    x = 1 + torch.randint(200, (3, 9))
    filled = x.clone()
    filled[0, 4:], filled[1, 1:] = 0, 0
    expected = torch.cat([model(x[:1, :4]), model(x[1:2, :1]), model(x[2:])])
    torch.testing.assert_close(model(filled), expected)
    assert expected.dtype == torch.float64
    assert model.task_of(torch.empty(3, dtype=torch.int64, device="meta")).is_meta


def test_a_stream_of_digits_is_a_task_an_epoch_with_earlier_ones_beside_it():
    data = DigitStreamDataModule(tasks=5, items=40, keep=3, augment=False)
    data.setup()
    source, index = data.sources["train"], torch.arange(40)
    remembered = set()
    for epoch in range(5):
        images, labels = source.fetch(index, epoch)
        own = labels // 2 == epoch
        assert own.all() if epoch == 0 else (own == (index % 2 == 0)).all(), "every second one"
        assert set((labels[~own] // 2).tolist()) == set(range(epoch))
        remembered |= {tuple(image.flatten().tolist()) for image in images[~own]}
        assert torch.equal(source.fetch(index[5:7], epoch)[0], images[5:7]), "whatever the batch"
    assert len(remembered) <= 4 * 3
    alone = DigitStreamDataModule(tasks=5, items=40, keep=0)
    alone.setup()
    assert (alone.sources["train"].fetch(index, 3)[1] // 2 == 3).all()
    with pytest.raises(ValueError, match="tasks must divide the 10 classes"):
        DigitStreamDataModule(tasks=3)


@pytest.mark.parametrize("kind", [StaticConPET, DynamicConPET])
def test_what_was_learnt_is_a_small_folder(kind, tmp_path):
    model = made(kind)
    for number in range(2):
        model.learn(*task(number, 4))
    folder, x = model.save(tmp_path), task(0)[0]
    assert not any(key.startswith("features") for key in load_file(folder / "model.safetensors"))
    again = made(kind)
    again.load(folder)
    assert torch.equal(again(x), model(x)) and again.sizes == [2, 2]
    with pytest.raises(ValueError, match="for a fresh one"):
        again.load(folder)
    with pytest.raises(ValueError, match="experts are adapters"):
        kind(zoo.create_model("vit_nano"), None)


def test_a_run_over_a_stream(trainer):
    """Each task's expert learns in its epoch alone, what is held out is scored from the start; then it ends."""
    made = ContinualClassification("vit_nano", {"depth": 1, "adapter": {"kind": "paca"}}, sizes=[5, 5], dynamic=True)
    made.configure_model()
    known: Any = made.experts
    heads: Any = [expert.head.weight for expert in known.experts]
    seen = [[head.detach().clone() for head in heads]]
    made.on_train_epoch_end = lambda: seen.append([head.detach().clone() for head in heads])
    data = DigitStreamDataModule(tasks=2, items=8, batch_size=4)
    with pytest.raises(ValueError, match="has 2 tasks, one an epoch"):
        trainer(max_epochs=3, limit_val_batches=1, num_sanity_val_steps=1).fit(made, data)
    moved = [[not torch.equal(a, b) for a, b in zip(*pair, strict=True)] for pair in pairwise(seen)]
    assert moved == [[True, False], [False, True]]
