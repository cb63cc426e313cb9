"""Volumes from files, and pictures of their slices."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from zoo.arrays import read_array


def read_volume(path: str | Path, channels: int) -> Tensor:
    """(channels, D, H, W) float32 of a ``.npy`` file, which may leave out a single channel.

    Raises:
        ValueError: for a file of other axes or channels, or with what is no finite number.
    """
    found = read_array(path)
    shape = found.shape
    if found.ndim == 3:
        found = found[None]
    if found.ndim != 4 or len(found) != channels or not found.size:
        raise ValueError(
            f"{path} must hold a volume ({channels}, depth, height, width), as the model reads, got {shape}"
        )
    volume = torch.from_numpy(found.astype("float32"))
    if not volume.isfinite().all():
        raise ValueError(f"{path} must hold finite numbers, got {int((~volume.isfinite()).sum())} others")
    return volume


def slices(volume: Tensor, masks: Tensor, most: int = 8) -> tuple[Tensor, int]:
    """Up to so many slices of a volume (C, D, H, W), evenly spaced, as images (rows * columns, 1, H, W) in [0, 1],
    above those of the masks (classes, D, H, W); and the columns."""
    depth = volume.shape[1]
    chosen = torch.linspace(0, depth - 1, min(most, depth)).round().long()
    grey = volume.mean(0)[chosen]
    low, high = volume.mean(0).aminmax()
    grey = (grey - low) / (high - low).clamp_min(torch.finfo(grey.dtype).tiny)
    return torch.cat([grey, *masks[:, chosen].float()])[:, None], len(chosen)
