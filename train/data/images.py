"""Any torchvision dataset or folder of images, through timm's transforms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.images import open_image
from zoo.train.data.base import DataModule
from zoo.train.data.folders import check_same_classes, count_classes, image_folder, labels_of, split_folders
from zoo.train.data.labelled import LabelledImages, input_config
from zoo.train.data.loader import Batch, BatchLoader, Source
from zoo.train.data.split import check_fraction, stratified_split
from zoo.train.data.torchvision_sets import TorchvisionSet

SPLIT_SEED = 0


class ImageDataModule(DataModule):
    """Images as `(B, C, H, W)` float32, normalised, and labels as `(B,)` int64.

    With `mixup` or `cutmix` training targets are `(B, num_classes)` float32 probabilities instead, label smoothing
    included; partners are mixed within a process's batch, so there more processes mean other pairs.

    Where images come from:
      - a torchvision dataset by name, such as "CIFAR10". One that takes `train=` trains on True and tests on False; one
        that takes `split=` is asked for the splits named below; of any other a stratified fifth is the test split.
      - without `dataset`, the folders `root/<split>/<class>/<image>`, for the splits named below, of which "test" may
        be missing; or, where none of them is there, `root/<class>/<image>`, of which a stratified fifth is for tests.
    Validation has a split of its own where `val_split` names one (that may be the test split) or there is a folder
    "val", "valid" or "validation", else a stratified slice of the training part. Splits are the same for every `seed`.

    Sizes and preparation that are not given are those of the model that is trained or evaluated (`follow`). Where there
    are fewer training images than `batch_size`, a batch is all of them.

    Args:
        dataset: a name in `torchvision.datasets`, or None for folders.
        root: where the dataset lies or is downloaded to, or the folder of folders.
        download: download what is missing (in one process, before training).
        dataset_kwargs: further arguments of the torchvision dataset.
        train_split, val_split, test_split: names of splits or folders. For ImageNet: "train", "val", "val".
        val_fraction: share of the training part held out for validation where `val_split` is None; 0 for none.
        num_classes: read from the dataset when left out.
        batch_size, eval_batch_size, num_workers, seed: see `DataModule`.
        pretrained_cfg: a model's `pretrained_cfg`, for input size, mean, std, interpolation and crop; each of the next
            arguments overrides what it says.
        img_size, in_chans, mean, std, interpolation, crop_pct, crop_mode: of the model's input; timm's defaults
            otherwise. An image's size is its side, or (height, width).
        exif_orientation: turn images of folders as the camera notes that it was held.
        skip_bad_images: leave out images of folders that cannot be read, with a warning, instead of an error that names
            the first; every image is read once more for it.
        scale, hflip, color_jitter: of the random resized crop, the mirror image and the colours in training.
        auto_augment: timm's name of an augmentation policy, such as "rand-m9-mstd0.5-inc1" (RandAugment).
        random_erasing: probability that a rectangle of a training image is erased.
        repeated_augmentation: differently augmented copies of an image in a batch; an epoch is as long as without, and
            sees a part of the images. (DeiT: 3; timm's `RepeatAugSampler`.)
        mixup, cutmix: alpha of each; 0 turns it off. label_smoothing applies with either.

    Raises:
        ValueError: a dataset torchvision does not have, or a number out of range.
        FileNotFoundError: a folder that is not there.

    Papers: RandAugment arXiv:1909.13719, random erasing arXiv:1708.04896, mixup arXiv:1710.09412, CutMix
    arXiv:1905.04899, repeated augmentation arXiv:1901.09335.
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
        img_size: int | tuple[int, int] | None = None,
        in_chans: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        interpolation: str | None = None,
        crop_pct: float | None = None,
        crop_mode: str | None = None,
        exif_orientation: bool = False,
        skip_bad_images: bool = False,
        scale: tuple[float, float] = (0.08, 1.0),
        hflip: float = 0.5,
        color_jitter: float = 0.0,
        auto_augment: str | None = None,
        random_erasing: float = 0.0,
        repeated_augmentation: int = 1,
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
        self.root, self.download = Path(root), download
        self.dataset = (
            None if dataset is None else TorchvisionSet(dataset, self.root, dict(dataset_kwargs or {}), train_split)
        )
        self.train_split, self.val_split, self.test_split = train_split, val_split, test_split
        self.val_fraction = val_fraction
        self.repeats = repeated_augmentation
        self.label_smoothing, self.mixup, self.cutmix = label_smoothing, mixup, cutmix
        self.augmentation = {
            "scale": tuple(scale),
            "hflip": hflip,
            "color_jitter": color_jitter,
            "auto_augment": auto_augment,
            "re_prob": random_erasing,
            "re_mode": "pixel",
        }
        self._given = {"img_size": img_size, "in_chans": in_chans, "mean": mean, "std": std}
        self._given |= {"interpolation": interpolation, "crop_pct": crop_pct, "crop_mode": crop_mode}
        self._given = {name: value for name, value in self._given.items() if value is not None}
        self.follows = pretrained_cfg is not None
        self.input = input_config(pretrained_cfg or {}, self._given)
        self.exif_orientation, self.skip_bad_images = exif_orientation, skip_bad_images
        if dataset is not None and (exif_orientation or skip_bad_images):
            raise ValueError(f"exif_orientation and skip_bad_images are for folders: {dataset} reads its own images")
        self._num_classes = num_classes
        if self.dataset is not None and not self.dataset.has_splits and val_split is not None:
            raise ValueError(f"{dataset} has no splits of its own: leave val_split out, got {val_split!r}")

    @property
    def num_classes(self) -> int:
        if self._num_classes is None:
            self.setup()
            self._num_classes = count_classes(self.sources["train"].dataset)  # pyright: ignore[reportAttributeAccessIssue]
        return self._num_classes

    @property
    def in_chans(self) -> int:
        return self.input["input_size"][0]

    @property
    def img_size(self) -> int | tuple[int, int]:
        height, width = self.input["input_size"][1:]
        return height if height == width else (height, width)

    def follow(self, pretrained_cfg: dict[str, Any]) -> None:
        """Prepare images as a model wants them, but for what this module was given itself."""
        if not self.follows:
            self.input = input_config(pretrained_cfg, self._given)
            self.sources, self.follows = {}, True

    @property
    def demands(self) -> dict[str, Any]:
        sizes = {"in_chans": self.in_chans, "img_size": self.img_size} if self.follows else self._given
        sizes = {name: sizes[name] for name in ("in_chans", "img_size") if name in sizes}
        return {**sizes, "num_classes": self.num_classes}

    @property
    def preparation(self) -> dict[str, Any]:
        self.setup()
        names = getattr(self.sources["train"].dataset, "classes", None) or ()  # pyright: ignore[reportAttributeAccessIssue]
        kept = {name: value for name, value in self.input.items() if name != "input_size"}
        return {**kept, "label_names": tuple(map(str, names))}

    def prepare_data(self) -> None:
        if self.download and self.dataset is not None:
            for split in {self.train_split, self.test_split, self.val_split or self.train_split}:
                self.dataset.open(split, download=True)

    def build(self) -> dict[str, Source]:
        train_split, val_split, test_split = self._split_names() or ("", None, "")
        pool = self._open(train_split)
        members = torch.arange(len(pool))
        test, test_members = pool, members[:0]
        if test_split == train_split == "":
            members, test_members = stratified_split(labels_of(pool), 0.2, SPLIT_SEED)
        elif test_split is not None:
            test = self._open(test_split)
            test_members = torch.arange(len(test))
        val, val_members = pool, members[:0]
        if val_split is not None:
            val = self._open(val_split)
            val_members = torch.arange(len(val))
        elif self.val_fraction:
            kept, held_out = stratified_split(labels_of(pool)[members], self.val_fraction, SPLIT_SEED + 1)
            members, val_members = members[kept], members[held_out]
        for other in (val, test):
            check_same_classes(pool, other)
        augment, plain = self.transform(train=True), self.transform()
        sources: dict[str, Source] = {
            "train": LabelledImages(pool, members, augment, self.in_chans, self.seed, self._mix(pool)),
            "val": LabelledImages(val, val_members, plain, self.in_chans),
            "test": LabelledImages(test, test_members, plain, self.in_chans),
        }
        return {split: source for split, source in sources.items() if len(source)}

    def train_dataloader(self) -> BatchLoader:
        self.setup()
        shares = self._process()[1] or 1
        if (available := len(self.sources["train"]) // shares) < self.batch_size:
            self.batch_size = max(1, available - available % 2 if self.mixup or self.cutmix else available)
        return super().train_dataloader()

    def transform(self, train: bool = False) -> Callable[[Any], Tensor]:
        """PIL image to `(C, H, W)` float32: what training images, or evaluation ones, go through."""
        from timm.data.transforms_factory import create_transform

        config = {name: value for name, value in self.input.items() if not (train and name.startswith("crop"))}
        return create_transform(is_training=train, **config, **(self.augmentation if train else {}))  # pyright: ignore

    def _mix(self, pool: Any) -> Callable[[Tensor, Tensor], Batch] | None:
        if not (self.mixup or self.cutmix):
            return None
        from timm.data.mixup import Mixup

        return Mixup(
            mixup_alpha=self.mixup,
            cutmix_alpha=self.cutmix,
            label_smoothing=self.label_smoothing,
            num_classes=self._num_classes or count_classes(pool),
        )

    def _split_names(self) -> tuple[str, str | None, str | None] | None:
        """To train, validate and test on; None where the data have no splits of their own."""
        if self.dataset is None:
            return split_folders(self.root, self.train_split, self.val_split, self.test_split)
        return (self.train_split, self.val_split, self.test_split) if self.dataset.has_splits else None

    def _open(self, split: str) -> Any:
        if self.dataset is not None:
            return self.dataset.open(split)
        mode = "L" if self.in_chans == 1 else "RGB"
        read = partial(open_image, mode=mode, exif_orientation=self.exif_orientation)
        return image_folder(self.root, split, read, self.skip_bad_images)
