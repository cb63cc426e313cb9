"""Clouds of points and images from files, and drawings of what is seen from above."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.arrays import read_array
from zoo.spatial.dfa3d import DFA3D
from zoo.spatial.scatterformer import ScatterFormer


def read_points(path: str | Path, channels: int) -> Tensor:
    """(N, channels) float32 of a file: ``.npy``, or numbers with commas or spaces between them, a line a point.

    Points with a number that is not finite are kept, and do not count.

    Raises:
        ValueError: for a file of other columns, without a point, or with what is no number.
    """
    path = Path(path)
    if path.suffix == ".npy":
        found = read_array(path)
    else:
        lines = [line.replace(",", " ") for line in path.read_text().splitlines()]
        try:
            found = np.array([[float(number) for number in line.split()] for line in lines if line.strip()])
        except ValueError as error:
            raise ValueError(
                f"{path} must hold numbers with commas or spaces between them, as many in each line: {error}"
            ) from error
    if found.ndim != 2 or found.shape[1] != channels or not len(found):
        raise ValueError(f"{path} must hold points (N, {channels}), as the model reads, got {found.shape}")
    if found.dtype.kind not in "fiu":
        raise ValueError(f"{path} must hold numbers, got {found.dtype}")
    return torch.from_numpy(found.astype(np.float32))


def read_views(paths: Sequence[str | Path], model: DFA3D) -> Tensor:
    """(num_cameras, in_chans, H, W) float32 between 0 and 1: an image of each camera, in their order.

    Raises:
        ValueError: for another number of images, or images of another size.
    """
    from PIL import Image

    c = model.config
    if len(paths) != c.num_cameras:
        raise ValueError(f"a scene must have an image of each of the {c.num_cameras} cameras, got {len(paths)}")
    views = []
    for path in paths:
        with Image.open(path) as image:
            view = np.asarray(image.convert("L" if c.in_chans == 1 else "RGB"), dtype=np.float32) / 255
        view = view[..., None] if view.ndim == 2 else view
        if view.shape != (*c.img_size, c.in_chans):
            raise ValueError(
                f"{path} must be an image of {c.img_size} pixels, height and width, got {view.shape[:2]}: resizing it "
                "would change where its camera looks"
            )
        views.append(torch.from_numpy(view).movedim(-1, 0))
    return torch.stack(views)


def draw_cloud(model: ScatterFormer, points: Tensor, title: str, path: str | Path) -> None:
    """An image of points (N, C) from above, the higher the brighter, with the windows that attend."""
    c = model.config
    (left, near, _), (right, far, _) = c.low, model.points.high
    shown = points[model.points.places(points[None])[1][0]]
    figure, axis = _square(title)
    drawn = axis.scatter(*shown[:, :2].T.numpy(), c=shown[:, 2].numpy(), s=8, cmap="viridis")
    for edges, line in (((left, right, c.voxel[0]), axis.axvline), ((near, far, c.voxel[1]), axis.axhline)):
        for at in np.arange(edges[0], edges[1] + edges[2] / 2, c.window * edges[2]):
            line(at, color="0.85", linewidth=0.6, zorder=0)
    axis.set(xlim=(left, right), ylim=(near, far), xlabel="x", ylabel="y")
    axis.locator_params(nbins=5)
    figure.colorbar(drawn, label="z")
    _write(figure, path)


def draw_ground(model: DFA3D, views: Tensor, shares: Tensor, path: str | Path) -> None:
    """An image of the probabilities (cells, cells) that something stands on the ground, with the cameras' axes, beside
    the views (num_cameras, in_chans, H, W) that they come from."""
    pyplot = _pyplot()
    reach, names = model.config.reach, [f"camera {number + 1}" for number in range(len(views))]
    layout = [[name, "ground", "ground", "ground"] for name in names]
    figure, axes = pyplot.subplot_mosaic(layout, figsize=(7.4, 4.8), layout="constrained")
    for name, view in zip(names, views, strict=True):
        shown = view.movedim(0, -1) if len(view) == 3 else view.mean(0)
        axes[name].imshow(shown.clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
        axes[name].set(title=name, xticks=[], yticks=[])
    axis = axes["ground"]
    drawn = axis.imshow(
        shares.numpy(), origin="lower", extent=(-reach, reach, -reach, reach), vmin=0, vmax=1, cmap="magma"
    )
    for number, ahead in enumerate(model.config.rig.axes()[:, 2].tolist()):
        axis.annotate(
            str(number + 1), (0, 0), (1.5 * ahead[0], 1.5 * ahead[1]), color="white", ha="center", va="center",
            arrowprops={"arrowstyle": "<-", "color": "white"},
        )  # fmt: skip
    axis.set(title="occupied", aspect="equal", xlabel="x, m", ylabel="y, m")
    figure.colorbar(drawn, label="probability")
    _write(figure, path)


def _square(title: str) -> tuple[Any, Any]:
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(5.5, 4.8), layout="constrained")
    axis.set(title=title, aspect="equal")
    return figure, axis


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _write(figure: Any, path: str | Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, dpi=120)
    pyplot.close(figure)
