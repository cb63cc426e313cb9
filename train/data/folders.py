"""Folders of images: which of them are splits, and what their images are labelled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.images import ImageError

VALIDATION = ("val", "valid", "validation")  # names under which a validation split is found where none is given


def split_folders(root: Path, train: str, val: str | None, test: str) -> tuple[str, str | None, str | None] | None:
    """The folders of `root` to train, validate and test on; None where `root` itself holds a folder a class.

    `val` None takes a folder of `VALIDATION`, if there is one; a folder "test" may be missing.
    """
    by_default = (train, val, test) == ("train", None, "test")
    present = {path.name for path in root.iterdir() if path.is_dir()} if root.is_dir() else set()
    if by_default and present and not present & {train, test, *VALIDATION}:
        return None
    found = next((name for name in VALIDATION if name in present - {test}), None)
    return train, found if val is None else val, test if test != "test" or test in present else None


def image_folder(root: Path, split: str, read: Callable[[str], Any], skip_bad_images: bool = False) -> Any:
    """torchvision's dataset of `root/split/<class>/<image>`.

    Args:
        root: the folder of folders.
        split: the one that holds the class folders.
        read: from a file's path to the image.
        skip_bad_images: read every image once, and leave out, with a warning, those that cannot be read.

    Raises:
        FileNotFoundError: for a folder that is not there, or a class without images.
    """
    from torchvision.datasets import ImageFolder

    folder = root / split
    if not folder.is_dir():
        found = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else None
        listing = "which does not exist" if found is None else f"which has the folders {', '.join(found) or 'none'}"
        raise FileNotFoundError(
            f"no folder {split!r} in {root}, {listing}: images are read from root/<split>/<class>/<image>, or from "
            "root/<class>/<image>; set root, train_split, val_split and test_split to what is there"
        )
    dataset = ImageFolder(str(folder), loader=read)
    if skip_bad_images and (bad := [path for path, _ in dataset.samples if not _readable(path, read)]):
        names = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
        warnings.warn(f"skipped {len(bad)} of {len(dataset)} images that cannot be read: {names}", stacklevel=2)
        dataset.samples = dataset.imgs = [sample for sample in dataset.samples if sample[0] not in set(bad)]
        dataset.targets = [label for _, label in dataset.samples]
    return dataset


def _readable(path: str, read: Callable[[str], Any]) -> bool:
    try:
        read(path)
    except ImageError:
        return False
    return True


def check_same_classes(train: Any, other: Any) -> None:
    """A folder's labels are its class folders' places in the alphabet: the same folders, or the labels mean others."""
    known, found = getattr(train, "classes", None) or [], getattr(other, "classes", None) or []
    if list(known) != list(found):
        odd = sorted({*map(str, known)} ^ {*map(str, found)})[:5]
        raise ValueError(
            f"every split must have the same classes, got {len(known)} and {len(found)}, only one has {odd}"
        )


def labels_of(dataset: Any) -> Tensor:
    """The label of every sample, without reading images where the dataset keeps a list."""
    for name in ("targets", "labels", "_labels"):
        labels = getattr(dataset, name, None)
        if labels is not None and len(labels) == len(dataset):
            return torch.as_tensor(np.asarray(labels)).long()
    return torch.tensor([int(dataset[index][1]) for index in range(len(dataset))])


def count_classes(dataset: Any) -> int:
    """How many classes a dataset says it has, else how many its labels show."""
    classes = getattr(dataset, "classes", None)
    if classes:
        return len(classes)
    return getattr(dataset, "num_classes", None) or int(labels_of(dataset).max()) + 1
