"""Autoencoders of images and of clips."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.generative import WeTok, generative
from zoo.train.tasks.base import Task
from zoo.train.tasks.metrics import Mean

Batch = tuple[Tensor, Any]


class ImageTokenization(Task):
    r"""Reconstruction of images from their codes; batches are `(images (B, C, H, W), targets)`, targets unused. A `CMD`
    is given clips `(B, C, T, H, W)`.

    The first stage minimises the mean absolute error and the model's side losses (entropy, commitment). The second,
    `generative`, freezes the encoder and teaches the decoder to make images that are distributed as those of the codes:
    of two draws y, y' for an image x it minimises the energy score :math:`|x - y| - \frac12 |y - y'|`, lengths over
    patches. The paper (arXiv:2508.05599) has a perceptual loss and a discriminator besides in the first and second
    stage, which are large downloads and left out; the energy score is ours.

    Logs `{train,val,test}/loss` and `{val,test}/psnr`, in dB for pixels in [0, 1]: the mean over all images.

    Args:
        model: see `Task`, which also has the other arguments; a `WeTok` or a `CMD`.
        generative: the second stage of a `WeTok`.
    """

    unit = "images"

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        generative: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, **kwargs)
        self.generative = generative
        self.means = nn.ModuleDict({name: Mean() for name in ("loss", "psnr")})

    def configure_model(self) -> None:
        if self.model is None and self.generative:
            build, given = self.build, self.given
            self.build = lambda: generative(cast(WeTok, build()))
            self.given = given
        super().configure_model()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.log_training(self._loss(self.trained, batch[0]).mean())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch[0], "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch[0], "test")

    def _loss(self, model: nn.Module, images: Tensor) -> Tensor:
        """Of each image."""
        first = model(images)
        if not self.generative:
            return (first - images).abs().flatten(1).mean(1)
        size = 2 * cast(WeTok, model).config.stride
        second, distance = model(images), lambda a, b: patch_lengths(a - b, size)
        return (distance(images, first) + distance(images, second) - distance(first, second)) / 2

    def _evaluate(self, images: Tensor, split: str) -> None:
        model = self.evaluated
        std = torch.tensor(cast(Any, model).config.std, device=images.device).view(-1, *[1] * (images.dim() - 2))
        squares = ((model(images) - images) * std).square().flatten(1).mean(1)
        for name, value in {"loss": self._loss(model, images), "psnr": -10 * squares.log10()}.items():
            mean = cast(Mean, self.means[name])
            mean.update(value)
            self.log(f"{split}/{name}", mean, on_epoch=True, prog_bar=True)


def patch_lengths(x: Tensor, size: int) -> Tensor:
    """Mean length of the patches of ``size`` pixels a side of x (B, C, H, W), over the square root of their numbers:
    (B,)."""
    patches = nn.functional.unfold(x, size, stride=max(1, size // 2))  # (B, numbers, patches)
    return (patches.square().mean(1) + 1e-8).sqrt().mean(1)
