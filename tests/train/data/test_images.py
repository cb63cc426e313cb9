"""ImageDataModule: datasets by name, folders, transforms and mixing."""

from __future__ import annotations

import pickle
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.train.data import ImageDataModule

FAKE: dict[str, Any] = {
    "dataset": "FakeData",
    "dataset_kwargs": {"size": 60, "image_size": (3, 40, 48), "num_classes": 4},
    "img_size": 32,
    "batch_size": 8,
}
STRONG = {"auto_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.5, "mixup": 0.8, "cutmix": 1.0}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Three classes of flat grey images, brightness 10 x class; 12 to train on and 4 to test on each."""
    for split, count in (("train", 12), ("test", 4)):
        for label, name in enumerate(("ant", "bee", "cat")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                shade = np.full((20, 24, 3), 10 * label + 30, dtype=np.uint8)
                Image.fromarray(shade).save(folder / f"{number}.png")
    return tmp_path


def read(loader) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_folder_images_reach_the_model_with_their_classes(folders: Path):
    data = ImageDataModule(
        root=str(folders), img_size=16, batch_size=6, val_fraction=0.25, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    images, labels = read(data.train_dataloader())
    assert images.shape == (24, 3, 16, 16) and images.dtype == torch.float32 and labels.dtype == torch.int64
    shades = (255 * images.mean((1, 2, 3))).round().long()
    assert torch.equal(shades, 30 + 10 * labels)
    assert data.num_classes == 3
    assert read(data.val_dataloader())[1].bincount().tolist() == [3, 3, 3]
    assert read(data.test_dataloader())[1].bincount().tolist() == [4, 4, 4]
    assert {len(source) for source in data.sources.values()} == {27, 9, 12}
    train, val = data.sources["train"], data.sources["val"]
    assert not {*train.members.tolist()} & {*val.members.tolist()}  # pyright: ignore[reportAttributeAccessIssue]


def test_validation_folder_of_its_own(folders: Path):
    data = ImageDataModule(root=str(folders), img_size=16, batch_size=6, val_split="test")
    data.setup()
    assert {split: len(source) for split, source in data.sources.items()} == {"train": 36, "val": 12, "test": 12}


def test_training_images_are_functions_of_seed_epoch_and_index():
    def batch(seed: int = 0, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        loader = ImageDataModule(**FAKE, **STRONG, seed=seed).train_dataloader()
        loader.set_epoch(epoch)
        return next(iter(loader))

    before = torch.get_rng_state(), str(np.random.get_state())
    images, targets = batch()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]
    torch.rand(3)
    again = batch()
    assert torch.equal(images, again[0]) and torch.equal(targets, again[1])
    assert not torch.equal(images, batch(seed=1)[0]) and not torch.equal(images, batch(epoch=1)[0])


def test_an_image_is_augmented_alike_in_any_batch_and_anew_each_epoch():
    data = ImageDataModule(**FAKE, auto_augment="rand-m9-mstd0.5-inc1")
    data.setup()
    train, indices = data.sources["train"], torch.arange(6)
    images = train.fetch(indices, 0)[0]
    assert torch.equal(train.fetch(indices[[4, 1]], 0)[0], images[[4, 1]])
    assert (train.fetch(indices, 1)[0] - images).flatten(1).abs().amax(1).min() > 0


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_workers_change_no_image():
    plain, parallel = (ImageDataModule(**FAKE, **STRONG, num_workers=n).train_dataloader() for n in (0, 2))
    for one, other in zip(plain, parallel, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_mixing_gives_probabilities_in_training_only():
    data = ImageDataModule(**FAKE, mixup=0.8, label_smoothing=0.1)
    images, targets = next(iter(data.train_dataloader()))
    assert images.shape == (8, 3, 32, 32) and targets.shape == (8, 4) and targets.dtype == torch.float32
    assert torch.allclose(targets.sum(1), torch.ones(8))
    assert targets.min() >= 0.1 / 4 - 1e-6
    plain = ImageDataModule(**FAKE)
    indices = next(plain.train_dataloader().plan(0))[1]
    labels = data.sources["train"].fetch(torch.tensor(indices), 0)[1]
    assert torch.equal(labels, targets)
    assert read(data.val_dataloader())[1].dtype == torch.int64
    evaluated = [read(module.test_dataloader())[0] for module in (data, plain)]
    assert torch.equal(*evaluated)


def test_mixed_targets_are_those_of_the_two_images():
    data, plain = ImageDataModule(**FAKE, cutmix=1.0), ImageDataModule(**FAKE)
    (_, targets), (_, labels) = next(iter(data.train_dataloader())), next(iter(plain.train_dataloader()))
    one_hot = torch.nn.functional.one_hot(labels, 4).float()
    alone = targets[torch.arange(8), labels]
    pairs = labels != labels.flip(0)
    share = alone[pairs][0]
    assert 0 < share < 1
    assert torch.allclose(targets, share * one_hot + (1 - share) * one_hot.flip(0))


def test_dataset_without_splits_holds_out_a_fixed_fifth():
    one, other = ImageDataModule(**FAKE), ImageDataModule(**FAKE, seed=1)
    for data in (one, other):
        data.setup()
    members = {split: source.members.tolist() for split, source in one.sources.items()}  # pyright: ignore
    assert sorted(chain(*members.values())) == list(range(60))
    assert len(members["test"]) == 12
    assert members == {split: source.members.tolist() for split, source in other.sources.items()}  # pyright: ignore
    assert one.num_classes == 4


def test_input_follows_the_models_configuration_unless_told_otherwise():
    cfg = {"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.25,), "interpolation": "bilinear", "crop_pct": 1.0}
    data = ImageDataModule(dataset="FakeData", pretrained_cfg=cfg)
    assert (data.in_chans, data.img_size) == (1, 28)
    image = Image.fromarray(np.full((28, 28, 3), 255, dtype=np.uint8))
    assert torch.allclose(data.transform()(image.convert("L")), torch.full((1, 28, 28), 2.0))
    other = ImageDataModule(dataset="FakeData", pretrained_cfg=cfg, img_size=32, in_chans=3, mean=(0.0, 0.0, 0.0))
    assert other.input["input_size"] == (3, 32, 32)
    assert other.input["mean"] == (0.0, 0.0, 0.0) and other.input["std"] == (0.25, 0.25, 0.25)
    assert torch.allclose(other.transform()(image.resize((32, 32))), torch.full((3, 32, 32), 4.0))


def test_named_dataset_with_a_train_argument_uses_its_own_test_part(tmp_path: Path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, count in (*((f"data_batch_{number}", 8) for number in range(1, 6)), ("test_batch", 8)):
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [number % 4 for number in range(count)]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcd")}))
    unchecked = pytest.MonkeyPatch()
    unchecked.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    unchecked.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: True)
    try:
        data = ImageDataModule(dataset="CIFAR10", root=str(tmp_path), img_size=32, batch_size=4, download=True)
        data.prepare_data()
        data.setup()
    finally:
        unchecked.undo()
    assert {split: len(source) for split, source in data.sources.items()} == {"train": 36, "val": 4, "test": 8}
    assert data.num_classes == 4
    assert read(data.test_dataloader())[0].shape == (8, 3, 32, 32)


def test_module_pickles():
    data = pickle.loads(pickle.dumps(ImageDataModule(**FAKE)))
    assert len(data.val_dataloader().source) == len(data.sources["val"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "CIFAR1O"}, "no dataset 'CIFAR1O'; did you mean 'CIFAR10'"),
        ({"dataset": "???"}, r"no dataset '\?\?\?'; Leave `dataset` out"),
        ({"dataset": "FakeData", "val_split": "val"}, "FakeData has no splits of its own.*got 'val'"),
        ({"batch_size": 7, "mixup": 0.2}, "batch_size must be even, got 7"),
        ({"mixup": -1.0}, "mixup=-1.0"),
        ({"random_erasing": 1.5}, "random_erasing must be in .*got 1.5"),
        ({"in_chans": 2}, "got in_chans=2"),
        ({"in_chans": 1, "mean": (0.1, 0.2, 0.3)}, "mean must have a value for each of 1 channels"),
    ],
)
def test_errors_in_arguments(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ImageDataModule(**options)


def test_errors_in_folders(folders: Path):
    with pytest.raises(FileNotFoundError, match=r"no folder 'train' in .*nowhere, which does not exist"):
        ImageDataModule(root=str(folders / "nowhere")).setup()
    with pytest.raises(FileNotFoundError, match=r"no folder 'val' in .*, which has the folders test, train"):
        ImageDataModule(root=str(folders), test_split="val").setup()
    (folders / "test" / "ant").rename(folders / "test" / "dog")
    with pytest.raises(ValueError, match=r"same classes, got 3 and 3, only one has \['ant', 'dog'\]"):
        ImageDataModule(root=str(folders)).setup()


def test_repeated_augmentation_puts_copies_of_an_image_into_a_batch():
    data = ImageDataModule(**FAKE, repeated_augmentation=4)
    loader = data.train_dataloader()
    plan = list(loader.plan(0))
    samples = len(loader.source)
    assert len(plan) == len(ImageDataModule(**FAKE).train_dataloader()), "an epoch is as long as without"
    for _, indices in plan:
        images = [index % samples for index in indices]
        assert images[::4] == images[1::4] == images[2::4] == images[3::4] and len({*indices}) == 8
    copies, labels = loader.source.fetch(torch.tensor(plan[0][1]), 0)
    assert len({*labels[:4].tolist()}) == 1
    assert all(not torch.equal(copies[0], other) for other in copies[1:4]), "each copy is augmented by itself"
    assert [index % samples for _, indices in loader.plan(1) for index in indices] != [
        index % samples for _, indices in plan for index in indices
    ]
