"""Series from files, and drawings of what was found in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.arrays import read_array
from zoo.series.stack_vae import StackVAE


def read_series(path: str | Path, channels: int) -> Tensor:
    """(T, channels) float32 of a file: ``.npy``, or numbers with commas between them, a line a moment.

    A first line that is not numbers names the channels.

    Raises:
        ValueError: for a file of other columns, or one with what is no finite number.
    """
    path = Path(path)
    if path.suffix == ".npy":
        found = read_array(path)
    else:
        with path.open() as lines:
            first = next(lines, "")
        try:
            found = np.loadtxt(path, delimiter=",", ndmin=2, skiprows=0 if _are_numbers(first) else 1)
        except ValueError as error:
            raise ValueError(f"{path} must hold numbers with commas between them, a line a moment: {error}") from error
    if found.ndim != 2 or found.shape[1] != channels:
        raise ValueError(f"{path} must hold a series (T, {channels}), as the model reads, got {found.shape}")
    if not np.isfinite(found).all():
        raise ValueError(f"{path} must hold finite numbers, got {np.count_nonzero(~np.isfinite(found))} others")
    return torch.from_numpy(found.astype(np.float32))


def draw_scores(model: StackVAE, series: Tensor, scores: Tensor, path: str | Path) -> None:
    """An image of the series (T, channels) and, below it, of the scores of each channel and their mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes: Any
    figure, axes = pyplot.subplots(3, 1, figsize=(10, 7), sharex=True, height_ratios=(2, 1, 1), layout="constrained")
    moments = range(model.config.window - 1, len(series))
    axes[0].plot((series + 4 * torch.arange(series.shape[1])).numpy(), linewidth=0.7)
    axes[0].set(ylabel="series", yticks=[])
    axes[1].imshow(
        scores.mT.numpy(), aspect="auto", origin="lower", interpolation="nearest", cmap="magma",
        extent=(moments[0] - 0.5, moments[-1] + 0.5, -0.5, scores.shape[1] - 0.5),
    )  # fmt: skip
    axes[1].set(ylabel="channel")
    axes[2].plot(moments, scores.mean(1).numpy(), linewidth=0.8)
    axes[2].set(ylabel="score", xlabel="moment")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _are_numbers(line: str) -> bool:
    try:
        [float(part) for part in line.split(",")]
    except ValueError:
        return False
    return True
