"""scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels in 10 classes, installed with the library."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.train.data.base import DataModule
from zoo.train.data.loader import Batch, Source
from zoo.train.data.rng import uniforms
from zoo.train.data.split import check_fraction, stratified_split

MEAN, STD = 0.305, 0.376  # of the training part's pixels, scaled to [0, 1]
MAX_SHIFT, MAX_ROTATION = 1.0, 10.0  # pixels, degrees
TEST_FRACTION, SPLIT_SEED = 0.2, 0


class DigitsDataModule(DataModule):
    """Handwritten digits as `(B, 1, 8, 8)` float32 images `(pixel / 16 - MEAN) / STD` and `(B,)` int64 labels.

    A stratified fifth (the same one for every seed) is the test split and never trained on; a stratified tenth of the
    rest, also fixed, is for validation.

    Args:
        batch_size, eval_batch_size, num_workers, seed: see `DataModule`.
        val_fraction: share of the training part that is held out for validation; 0 trains on all of it.
        augment: shift each training image by up to 1 pixel and rotate it by up to 10 degrees, anew each epoch.
        negative: dark digits on a light ground, to tune what knows the others.

    Data: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI repository (1998).
    """

    num_classes = 10
    in_chans = 1
    img_size = 8

    def __init__(
        self,
        *,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        val_fraction: float = 0.1,
        augment: bool = True,
        negative: bool = False,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        check_fraction(val_fraction=val_fraction)
        self.val_fraction = val_fraction
        self.augment, self.negative = augment, negative

    @property
    def demands(self) -> dict[str, Any]:
        return {"in_chans": self.in_chans, "img_size": self.img_size, "num_classes": self.num_classes}

    @property
    def preparation(self) -> dict[str, Any]:
        return {"mean": (MEAN,), "std": (STD,), "crop_pct": 1.0, "label_names": tuple("0123456789")}

    def build(self) -> dict[str, Source]:
        from sklearn.datasets import load_digits

        pixels, target = load_digits(return_X_y=True)  # (1797, 64) in [0, 16], (1797,)
        images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
        images = 1 - images if self.negative else images
        labels = torch.tensor(target, dtype=torch.int64)
        rest, test = stratified_split(labels, TEST_FRACTION, SPLIT_SEED)
        kept, held_out = stratified_split(labels[rest], self.val_fraction, SPLIT_SEED + 1)
        train, val = rest[kept], rest[held_out]
        seed = self.seed if self.augment else None
        sources: dict[str, Source] = {
            "train": DigitImages(images[train], labels[train], seed),
            "val": DigitImages(images[val], labels[val]),
            "test": DigitImages(images[test], labels[test]),
        }
        return {split: source for split, source in sources.items() if len(source)}


class DigitLevelsDataModule(DigitsDataModule):
    """Handwritten digits as they were recorded, `(B, 1, 8, 8)` int64 images of 17 levels, not augmented, and `(B,)`
    int64 labels: what models of the pixels themselves learn from. Splits and arguments are those of `DigitsDataModule`.
    """

    num_levels = 17

    def __init__(
        self,
        *,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        val_fraction: float = 0.1,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            val_fraction=val_fraction,
            augment=False,
        )

    preparation: dict[str, Any] = {}  # noqa: RUF012  (levels are what the pixels are)

    def build(self) -> dict[str, Source]:
        return {split: DigitLevels(source) for split, source in super().build().items()}


class DigitTokensDataModule(DigitsDataModule):
    """Handwritten digits as the codes of a tokenizer, `(B, groups, tokens)` int64 indices, and `(B,)` int64 labels:
    what models of tokens learn from. Splits and arguments are those of `DigitsDataModule`; images are augmented before
    they are encoded.

    Args:
        tokenizer: name of a `WeTok` with bundled weights, or "local-dir:FOLDER".
    """

    def __init__(
        self,
        tokenizer: str = "wetok_scales_nano",
        *,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        val_fraction: float = 0.1,
        augment: bool = True,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            val_fraction=val_fraction,
            augment=augment,
        )
        self.tokenizer = tokenizer

    preparation: dict[str, Any] = {}  # noqa: RUF012  (tokens are what the images are)

    @property
    def demands(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}

    def build(self) -> dict[str, Source]:
        import zoo

        named = not self.tokenizer.startswith("local-dir:")
        model = zoo.create_model(self.tokenizer, pretrained=named).eval()
        return {split: Tokens(source, model) for split, source in super().build().items()}


class Tokens:
    """The images of a source as what a tokenizer makes of them."""

    def __init__(self, source: Source, tokenizer: Any) -> None:
        self.source, self.tokenizer = source, tokenizer

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, indices: Tensor, epoch: int) -> Batch:
        images, labels = self.source.fetch(indices, epoch)
        return self.tokenizer.encode(images).mT.contiguous(), labels


class DigitImages:
    """Images in [0, 1] and their labels, normalised and, where a seed is given, augmented by (seed, epoch, index)."""

    def __init__(self, images: Tensor, labels: Tensor, augment_seed: int | None = None) -> None:
        self.images, self.labels, self.augment_seed = images, labels, augment_seed

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: Tensor, epoch: int) -> Batch:
        images = self.images[indices]
        if self.augment_seed is not None:
            shift_and_turn = uniforms(indices, 3, self.augment_seed, epoch).float() * 2 - 1
            images = shift_and_rotate(images, MAX_SHIFT * shift_and_turn[:, :2], MAX_ROTATION * shift_and_turn[:, 2])
        return (images - MEAN) / STD, self.labels[indices]


class DigitLevels:
    """The images of a source of normalised, unaugmented digits as levels in [0, 16]."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, indices: Tensor, epoch: int) -> Batch:
        images, labels = self.source.fetch(indices, epoch)
        return ((images * STD + MEAN) * 16).round().long(), labels


def shift_and_rotate(images: Tensor, shifts: Tensor, degrees: Tensor) -> Tensor:
    """Move each image by its shift (x right, y down) and turn it about its centre, bilinearly, over a black ground.

    Args:
        images: `(B, C, H, W)` float.
        shifts: `(B, 2)` in pixels, (x, y).
        degrees: `(B,)`, counter-clockwise as seen.
    """
    height, width = images.shape[-2:]
    angle = degrees * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    # The grid maps output to input coordinates, each axis scaled to [-1, 1]: the inverse of the motion.
    dx, dy = shifts[:, 0] * 2 / width, shifts[:, 1] * 2 / height
    skew = height / width
    rows = [
        torch.stack([cos, -sin * skew, -(cos * dx - sin * skew * dy)], dim=1),
        torch.stack([sin / skew, cos, -(sin / skew * dx + cos * dy)], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
