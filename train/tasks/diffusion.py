"""Diffusion models of images: the velocity along a path from images to noise."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.generative import DiffusionModel
from zoo.train.tasks.base import Task
from zoo.train.tasks.metrics import Mean

Batch = tuple[Tensor, Tensor]


class ImageDiffusion(Task):
    """Mean square error of the velocity; batches are `(images (B, C, H, W), classes (B,))`; clips for models of clips.

    A training step draws the times, uniformly or more often in the middle, and the noise anew; an evaluation takes
    `TIMES` times spread evenly over (0, 1) and noise that is a function of the batch's number and size alone, so that
    models and epochs compare where batches do. Logs `{train,val,test}/loss`: the mean over all images of the split.

    Args:
        model: see `Task`, which also has the other arguments; a `DiffusionModel`.
        logit_normal: times are the sigmoid of normal numbers, as in "Scaling Rectified Flow Transformers"
            (arXiv:2403.03206).
        times: the times drawn are spread over this part of (0, 1); a token is learnt best between 0.5 and 0.9, as
            ZOODiP has it (arXiv:2503.14868).

    Raises:
        ValueError: for times that are no part of it.
    """

    unit = "images"
    TIMES = 8

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        logit_normal: bool = False,
        times: tuple[float, float] = (0.0, 1.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, **kwargs)
        if not 0 <= times[0] < times[1] <= 1:
            raise ValueError(f"times must be a part of (0, 1), got {times}")
        self.logit_normal, self.times = logit_normal, times
        self.means = nn.ModuleDict({"loss": Mean()})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, classes = batch
        model, t = cast(DiffusionModel, self.trained), self.drawn_times(images)
        return self.log_training(model.errors(images, torch.randn_like(images), t, classes).mean())

    def drawn_times(self, images: Tensor) -> Tensor:
        """Of each image, (B,)."""
        t = torch.randn(len(images), device=images.device).sigmoid() if self.logit_normal else None
        t = torch.rand(len(images), device=images.device) if t is None else t
        return self.times[0] + (self.times[1] - self.times[0]) * t

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx, "test")

    def _evaluate(self, batch: Batch, batch_idx: int, split: str) -> None:
        mean = cast(Mean, self.means["loss"])
        mean.update(self.measured(batch, batch_idx))
        self.log(f"{split}/loss", mean, on_epoch=True, prog_bar=True)

    def measured(self, batch: Batch, seed: int) -> Tensor:
        """The errors (B,) of a batch in an evaluation."""
        return velocity_errors(cast(DiffusionModel, self.evaluated), *batch, seed=seed)


def velocity_errors(
    model: DiffusionModel, images: Tensor, classes: Tensor | None, seed: int = 0, **given: Tensor
) -> Tensor:
    """Mean error (B,) over `ImageDiffusion.TIMES` times, with noise of a seed; `given` is the model's own."""
    generator, errors = torch.Generator().manual_seed(seed), []
    for step in range(ImageDiffusion.TIMES):
        noise = torch.randn(images.shape, generator=generator).to(images)
        t = torch.full((len(images),), (step + 0.5) / ImageDiffusion.TIMES, device=images.device)
        errors.append(model.errors(images, noise, t, classes, **given))
    return torch.stack(errors).mean(0)
