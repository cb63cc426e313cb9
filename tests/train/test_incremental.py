"""Classes a task at a time: what stays, what a budget holds, and what a task's beginning does not change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.train.incremental import IncrementalClassifier, herded

SMALL = {"dim": 16, "depth": 3, "num_heads": 2}


def task(number: int, count: int = 40) -> tuple[Tensor, Tensor]:
    """Classes 2 n and 2 n + 1, each a picture with noise."""
    pictures = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(count) % 2 + 2 * number
    return pictures[classes] + 0.3 * torch.randn(
        count, 1, 8, 8, generator=torch.Generator().manual_seed(number)
    ), classes


def made(special: int = 1, model: str = "vit_nano", **options: Any) -> IncrementalClassifier:
    torch.manual_seed(0)
    sizes = SMALL if model == "vit_nano" else {}
    defaults = {"budget": 200_000, "steps": 40, "batch_size": 16, "lr": 5e-3}
    return IncrementalClassifier(zoo.create_model(model, **sizes), special=special, **{**defaults, **options})  # pyright: ignore


@pytest.mark.parametrize("special", [0, 1, 3])
def test_a_stream_is_learnt(special):
    model = made(special)
    for number in range(3):
        model.learn(*task(number))
    images, classes = (torch.cat(part) for part in zip(*(task(number) for number in range(3)), strict=True))
    assert (model(images).argmax(1) == classes).float().mean() > 0.6
    assert model.head.weight.shape == (6, 16 * (3 if special else 1)) and len(model.branches) == (3 if special else 1)


@pytest.mark.parametrize("name", ["vit_nano", "simplenet_nano"])
def test_what_earlier_tasks_learnt_stays_as_it_is(name):
    """Statistics of batch norms included."""
    model = made(1, name, budget=10**6, steps=3)
    model.learn(*task(0))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items() if not key.startswith("head.")}
    model.learn(*task(1))
    for key, tensor in before.items():
        assert torch.equal(model.state_dict()[key], tensor), key
    newest, first = model.branches[1].state_dict(), model.branches[0].state_dict()
    assert any(not torch.equal(tensor, first[key]) for key, tensor in newest.items())


def test_a_task_begins_without_changing_an_answer_and_its_rows_are_brought_to_length():
    model = made(steps=3)
    model.learn(*task(0))
    images, _ = task(5)
    expected = model(images)
    model.begin(3)
    torch.testing.assert_close(model(images)[:, :2], expected)
    again = made(steps=3)
    again.learn(*task(0))
    again.learn(*task(1))
    lengths = again.head.weight.norm(dim=1)
    torch.testing.assert_close(lengths[:2].mean(), lengths[2:].mean())


def test_the_budget_is_of_images_and_blocks_alike():
    block = 4 * sum(p.numel() for p in zoo.create_model("vit_nano", **SMALL).blocks[-1].parameters())
    for special, blocks in ((1, 1), (2, 2), (0, 0)):
        model = made(special, budget=2 * block + 64 * 20, steps=1)
        assert model.block_bytes == blocks * block
        for number in range(2):
            model.learn(*task(number, 1000))
        used = model.block_bytes * (len(model.branches) - 1) + 64 * sum(len(part) for part in model.kept)
        assert model.budget - 64 * 4 < used <= model.budget
    model = made(1, budget=block - 1, steps=1)
    model.learn(*task(0))
    with pytest.raises(ValueError, match=f"does not hold the layers of task 2, {block} bytes a task"):
        model.learn(*task(1))


def test_images_whose_mean_is_the_class_are_kept():
    features = F.normalize(torch.randn(30, 5, dtype=torch.float64))
    chosen = herded(features, 8)
    assert len(set(chosen.tolist())) == 8 and len(herded(features, 99)) == 30
    assert torch.equal(chosen[:3], herded(features, 3))
    mean = features.mean(0)
    assert chosen[0] == (features - mean).norm(dim=1).argmin()
    drawn = torch.stack([(features[torch.randperm(30)[:8]].mean(0) - mean).norm() for _ in range(200)])
    assert (features[chosen].mean(0) - mean).norm() < drawn.quantile(0.02)


def test_it_goes_on_between_two_tasks_as_if_nothing_had_been():
    whole, broken = made(steps=3), made(steps=3)
    for number in range(3):
        whole.learn(*task(number))
    for number in range(2):
        broken.learn(*task(number))
    again = made(steps=3)
    again.restore(broken.state())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again.learn(*task(2))
    torch.set_rng_state(state)
    broken.learn(*task(2))
    assert all(torch.equal(tensor, broken.state_dict()[key]) for key, tensor in again.state_dict().items())
    assert whole.state_dict().keys() == again.state_dict().keys()


def test_errors():
    with pytest.raises(ValueError, match=r"learnt by an image classifier .*, got TransformerLanguageModel: take one"):
        IncrementalClassifier(zoo.create_model("transformer_nano", depth=1))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="special must be 0 to the 3 layers, got 4"):
        made(4)
    model = made(steps=1)
    model.learn(*task(0))
    for number in (0, 2):
        with pytest.raises(ValueError, match=f"the classes of this task begin at 2, got {2 * number}"):
            model.learn(*task(number))
    assert model.sizes == [2]
