"""The datasets of torchvision by name, whatever arguments each of them has."""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any


class TorchvisionSet:
    """A dataset that is opened split by split, as far as it has any.

    Args:
        name: in `torchvision.datasets`.
        root: where it lies or is downloaded to.
        options: further arguments of it.
        train_split: the name that means True where it takes `train=`.

    Raises:
        ValueError: for a name that torchvision does not have.
    """

    def __init__(self, name: str, root: Path, options: dict[str, Any], train_split: str) -> None:
        self.root, self.options, self.train_split = root, options, train_split
        self.dataset = _dataset(name)
        self.parameters = set(inspect.signature(self.dataset).parameters)

    @property
    def has_splits(self) -> bool:
        """Whether it takes `train=` or `split=`."""
        return bool({"train", "split"} & self.parameters)

    def open(self, split: str, download: bool = False) -> Any:
        """One split, or all there is."""
        wanted = {"root": str(self.root), "train": split == self.train_split, "split": split, "download": download}
        if "train" in self.parameters:
            del wanted["split"]
        return self.dataset(**self.options | {name: wanted[name] for name in wanted if name in self.parameters})


def _dataset(name: str) -> type:
    from torchvision import datasets

    if name not in datasets.__all__:
        nearest = difflib.get_close_matches(name, datasets.__all__, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise ValueError(f"torchvision has no dataset {name!r}; {hint}Leave `dataset` out to read folders of images.")
    return getattr(datasets, name)
