"""Any torchvision dataset or folder of images, through timm's transforms."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.train.data.base import DataModule
from zoo.train.data.loader import Batch, Source
from zoo.train.data.rng import derive_seed, global_state_kept, seed_global
from zoo.train.data.split import check_fraction, stratified_split

SPLIT_SEED = 0


class ImageDataModule(DataModule):
    """Images as `(B, C, H, W)` float32, normalised, and labels as `(B,)` int64.

    With `mixup` or `cutmix` training targets are `(B, num_classes)` float32 probabilities instead, label smoothing
    included; partners are mixed within a process's batch, so there more processes mean other pairs.

    Where images come from:
      - a torchvision dataset by name, such as "CIFAR10". One that takes `train=` trains on True and tests on False; one
        that takes `split=` is asked for the splits named below; of any other a stratified fifth is the test split.
      - without `dataset`, the folders `root/<split>/<class>/<image>`, for the splits named below.
    Validation has a split of its own where `val_split` names one (that may be the test split), else a stratified slice
    of the training part. Splits are the same for every `seed`.

    Args:
        dataset: a name in `torchvision.datasets`, or None for folders.
        root: where the dataset lies or is downloaded to, or the folder of folders.
        download: download what is missing (in one process, before training).
        dataset_kwargs: further arguments of the torchvision dataset.
        train_split, val_split, test_split: names of splits or folders. For ImageNet: "train", "val", "val".
        val_fraction: share of the training part held out for validation where `val_split` is None; 0 for none.
        num_classes: read from the dataset when left out.
        batch_size, eval_batch_size, num_workers, seed: see `DataModule`.
        pretrained_cfg: a model's `pretrained_cfg`, for input size, mean, std, interpolation and crop; each of the
            next arguments overrides what it says.
        img_size, in_chans, mean, std, interpolation, crop_pct: of the model's input; timm's defaults otherwise.
        scale, hflip, color_jitter: of the random resized crop, the mirror image and the colours in training.
        auto_augment: timm's name of an augmentation policy, such as "rand-m9-mstd0.5-inc1" (RandAugment).
        random_erasing: probability that a rectangle of a training image is erased.
        mixup, cutmix: alpha of each; 0 turns it off. label_smoothing applies with either.

    Raises:
        ValueError: a dataset torchvision does not have, or a number out of range.
        FileNotFoundError: a folder that is not there.

    Papers: RandAugment arXiv:1909.13719, random erasing arXiv:1708.04896, mixup arXiv:1710.09412, CutMix
    arXiv:1905.04899.
    """

    def __init__(
        self,
        *,
        dataset: str | None = None,
        root: str = "data",
        download: bool = False,
        dataset_kwargs: dict[str, Any] | None = None,
        train_split: str = "train",
        val_split: str | None = None,
        test_split: str = "test",
        val_fraction: float = 0.1,
        num_classes: int | None = None,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        pretrained_cfg: dict[str, Any] | None = None,
        img_size: int | None = None,
        in_chans: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        interpolation: str | None = None,
        crop_pct: float | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        hflip: float = 0.5,
        color_jitter: float = 0.0,
        auto_augment: str | None = None,
        random_erasing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        check_fraction(val_fraction=val_fraction, random_erasing=random_erasing, label_smoothing=label_smoothing)
        if min(mixup, cutmix) < 0:
            raise ValueError(f"mixup and cutmix must be >= 0, got mixup={mixup}, cutmix={cutmix}")
        if (mixup or cutmix) and batch_size % 2:
            raise ValueError(f"mixup and cutmix mix images in pairs: batch_size must be even, got {batch_size}")
        self.dataset, self.root, self.download = dataset, Path(root), download
        self.dataset_kwargs = dict(dataset_kwargs or {})
        self.train_split, self.val_split, self.test_split = train_split, val_split, test_split
        self.val_fraction = val_fraction
        self.label_smoothing, self.mixup, self.cutmix = label_smoothing, mixup, cutmix
        self.augmentation = {
            "scale": tuple(scale),
            "hflip": hflip,
            "color_jitter": color_jitter,
            "auto_augment": auto_augment,
            "re_prob": random_erasing,
            "re_mode": "pixel",
        }
        given = {"mean": mean, "std": std, "interpolation": interpolation, "crop_pct": crop_pct}
        self.input = _input_config(pretrained_cfg or {}, img_size, in_chans, given)
        self._num_classes = num_classes
        self._dataset_class = None if dataset is None else _torchvision_dataset(dataset)
        if self._has_no_splits() and val_split is not None:
            raise ValueError(f"{dataset} has no splits of its own: leave val_split out, got {val_split!r}")

    @property
    def num_classes(self) -> int:
        if self._num_classes is None:
            self.setup()
            self._num_classes = _num_classes(self.sources["train"].dataset)  # pyright: ignore[reportAttributeAccessIssue]
        return self._num_classes

    @property
    def in_chans(self) -> int:
        return self.input["input_size"][0]

    @property
    def img_size(self) -> int:
        return self.input["input_size"][1]

    @property
    def preparation(self) -> dict[str, Any]:
        self.setup()
        names = getattr(self.sources["train"].dataset, "classes", None) or ()  # pyright: ignore[reportAttributeAccessIssue]
        kept = {name: value for name, value in self.input.items() if name != "input_size"}
        return {**kept, "label_names": tuple(map(str, names))}

    def prepare_data(self) -> None:
        if self.download and self._dataset_class is not None:
            for split in {self.train_split, self.test_split, self.val_split or self.train_split}:
                self._open(split, download=True)

    def build(self) -> dict[str, Source]:
        pool, test = self._open(self.train_split), self._open(self.test_split)
        members = torch.arange(len(pool))
        if self._has_no_splits():
            members, test_members = stratified_split(_labels(pool), 0.2, SPLIT_SEED)
        else:
            test_members = torch.arange(len(test))
        val, val_members = pool, members[:0]
        if self.val_split is not None:
            val = self._open(self.val_split)
            val_members = torch.arange(len(val))
        elif self.val_fraction:
            kept, held_out = stratified_split(_labels(pool)[members], self.val_fraction, SPLIT_SEED + 1)
            members, val_members = members[kept], members[held_out]
        for other in (val, test):
            _check_same_classes(pool, other)
        augment, plain = self.transform(train=True), self.transform()
        sources: dict[str, Source] = {
            "train": LabelledImages(pool, members, augment, self.in_chans, self.seed, self._mix(pool)),
            "val": LabelledImages(val, val_members, plain, self.in_chans),
            "test": LabelledImages(test, test_members, plain, self.in_chans),
        }
        return {split: source for split, source in sources.items() if len(source)}

    def transform(self, train: bool = False) -> Callable[[Any], Tensor]:
        """PIL image to `(C, H, W)` float32: what training images, or evaluation ones, go through."""
        from timm.data.transforms_factory import create_transform

        config = {name: value for name, value in self.input.items() if name != "crop_pct" or not train}
        return create_transform(is_training=train, **config, **(self.augmentation if train else {}))  # pyright: ignore

    def _mix(self, pool: Any) -> Callable[[Tensor, Tensor], Batch] | None:
        if not (self.mixup or self.cutmix):
            return None
        from timm.data.mixup import Mixup

        return Mixup(
            mixup_alpha=self.mixup,
            cutmix_alpha=self.cutmix,
            label_smoothing=self.label_smoothing,
            num_classes=self._num_classes or _num_classes(pool),
        )

    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self._dataset_class).parameters if self._dataset_class is not None else {}

    def _has_no_splits(self) -> bool:
        return self._dataset_class is not None and not {"train", "split"} & set(self._parameters())

    def _open(self, split: str, download: bool = False) -> Any:
        if self._dataset_class is None:
            return _image_folder(self.root, split)
        chosen: dict[str, Any] = dict(self.dataset_kwargs)
        parameters = self._parameters()
        if "root" in parameters:
            chosen["root"] = str(self.root)
        if "train" in parameters:
            chosen["train"] = split == self.train_split
        elif "split" in parameters:
            chosen["split"] = split
        if "download" in parameters:
            chosen["download"] = download
        return self._dataset_class(**chosen)


class LabelledImages:
    """The images numbered `members` of a map-style dataset of (PIL image, label).

    Transforms draw from the global generators, which are seeded for each sample by (seed, epoch, index) and put back
    afterwards; mixing draws by (seed, epoch, the batch's indices).
    """

    def __init__(
        self,
        dataset: Any,
        members: Tensor,
        transform: Callable[[Any], Tensor],
        in_chans: int,
        seed: int = 0,
        mix: Callable[[Tensor, Tensor], Batch] | None = None,
    ) -> None:
        self.dataset, self.members, self.transform = dataset, members, transform
        self.mode = "L" if in_chans == 1 else "RGB"
        self.seed, self.mix = seed, mix

    def __len__(self) -> int:
        return len(self.members)

    def fetch(self, indices: Tensor, epoch: int) -> Batch:
        images, labels = [], []
        with global_state_kept():
            for index in indices.tolist():
                seed_global(derive_seed(self.seed, epoch, index))
                image, label = self.dataset[int(self.members[index])]
                images.append(self.transform(image.convert(self.mode)))
                labels.append(int(label))
            batch = torch.stack(images), torch.tensor(labels)
            if self.mix is None:
                return batch
            seed_global(derive_seed(self.seed, epoch, *indices.tolist()))
            return self.mix(*batch)


def _input_config(
    pretrained_cfg: dict[str, Any], img_size: int | None, in_chans: int | None, given: dict[str, Any]
) -> dict[str, Any]:
    """timm's input configuration: explicit values first, then the model's, then timm's defaults."""
    from timm.data.config import resolve_data_config

    config = resolve_data_config(pretrained_cfg=pretrained_cfg or {"input_size": (3, 224, 224)})
    chans, size = config["input_size"][0], config["input_size"][-1]
    chans = chans if in_chans is None else in_chans
    if chans not in (1, 3):
        raise ValueError(f"images have 1 or 3 channels, got in_chans={chans}")
    given = {name: value for name, value in given.items() if value is not None}
    names = ("interpolation", "mean", "std", "crop_pct")
    config = {"input_size": (chans, *2 * (img_size or size,)), **{name: config[name] for name in names}, **given}
    for name in ("mean", "std"):
        values = tuple(config[name])
        if len(values) != chans and name in given:
            raise ValueError(f"{name} must have a value for each of {chans} channels, got {values}")
        config[name] = values if len(values) == chans else (float(np.mean(values)),) * chans
    return config


def _torchvision_dataset(name: str) -> type:
    from torchvision import datasets

    if name not in datasets.__all__:
        nearest = difflib.get_close_matches(name, datasets.__all__, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise ValueError(f"torchvision has no dataset {name!r}; {hint}Leave `dataset` out to read folders of images.")
    return getattr(datasets, name)


def _image_folder(root: Path, split: str) -> Any:
    from torchvision.datasets import ImageFolder

    folder = root / split
    if not folder.is_dir():
        found = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else None
        listing = "which does not exist" if found is None else f"which has the folders {', '.join(found) or 'none'}"
        raise FileNotFoundError(
            f"no folder {split!r} in {root}, {listing}: images are read from root/<split>/<class>/<image>; set root, "
            "train_split, val_split and test_split to what is there"
        )
    return ImageFolder(str(folder))


def _check_same_classes(train: Any, other: Any) -> None:
    """A folder's labels are its class folders' places in the alphabet: the same folders, or the labels mean others."""
    known, found = getattr(train, "classes", None) or [], getattr(other, "classes", None) or []
    if list(known) != list(found):
        odd = sorted({*map(str, known)} ^ {*map(str, found)})[:5]
        raise ValueError(
            f"every split must have the same classes, got {len(known)} and {len(found)}, only one has {odd}"
        )


def _labels(dataset: Any) -> Tensor:
    """The label of every sample, without reading images where the dataset keeps a list."""
    for name in ("targets", "labels", "_labels"):
        labels = getattr(dataset, name, None)
        if labels is not None and len(labels) == len(dataset):
            return torch.as_tensor(np.asarray(labels)).long()
    return torch.tensor([int(dataset[index][1]) for index in range(len(dataset))])


def _num_classes(dataset: Any) -> int:
    classes = getattr(dataset, "classes", None)
    if classes:
        return len(classes)
    return getattr(dataset, "num_classes", None) or int(_labels(dataset).max()) + 1
