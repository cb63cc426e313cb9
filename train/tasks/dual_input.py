"""Image classification in two stages: the branches of a model by themselves, then all of it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.train.tasks.classification import Batch, ImageClassification


class DualInputClassification(ImageClassification):
    """First each of two branches learns by itself, one from the images and one from distorted copies of them; then the
    whole model learns from the images. Evaluation is of the whole model throughout.

    The model needs `forward_branches(images, distorted)`, which returns the logits of both branches (`lightcnn_*`).
    Distortions are drawn for each image anew: a rotation, a zoom and a shift, with what lies outside continued from the
    border, and a brightness.

    Args:
        model: see `ImageClassification`, which also has the other arguments.
        dual_epochs: epochs of the first stage.
        rotation: largest angle, in degrees.
        zoom, shift, brightness: largest relative change of the size, move in parts of the image's side, relative change
            of the values.

    Paper: Isong, "Building Efficient Lightweight CNN Models", arXiv 2501.15547.
    """

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        dual_epochs: int = 10,
        rotation: float = 10.0,
        zoom: float = 0.1,
        shift: float = 0.1,
        brightness: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, **kwargs)
        if dual_epochs < 0 or min(rotation, zoom, shift, brightness) < 0 or zoom >= 1:
            raise ValueError(
                "dual_epochs and the distortions must be at least 0 and zoom below 1, got dual_epochs "
                f"{dual_epochs}, rotation {rotation}, zoom {zoom}, shift {shift}, brightness {brightness}"
            )
        self.dual_epochs = dual_epochs
        self.distortion = (rotation, zoom, shift, brightness)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.current_epoch >= self.dual_epochs:
            return super().training_step(batch, batch_idx)
        images, targets = batch
        assert self.lean is not None
        with self.lean.around():
            branches = self.trained.forward_branches(images, distorted(images, *self.distortion))  # type: ignore[operator]
        return self.log_training(sum((self._loss(logits.float(), targets) for logits in branches), torch.zeros(())))


def distorted(images: Tensor, rotation: float, zoom: float, shift: float, brightness: float) -> Tensor:
    """Each image (B, C, H, W) turned, resized, moved and brightened by its own random amounts."""
    angle, size, right, down, light = (2 * torch.rand(5, len(images), device=images.device) - 1).unbind()
    angle, size = angle * math.radians(rotation), 1 + size * zoom
    cos, sin = size * angle.cos(), size * angle.sin()
    rows = torch.stack([cos, -sin, 2 * shift * right, sin, cos, 2 * shift * down], dim=1).unflatten(1, (2, 3))
    grid = F.affine_grid(rows.to(images.dtype), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return moved * (1 + brightness * light)[:, None, None, None].to(images.dtype)
