"""Autoencoders of images and of clips."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

import zoo
from zoo.generative import WeTok, frechet, generative
from zoo.train.tasks.base import Task
from zoo.train.tasks.metrics import Mean

Batch = tuple[Tensor, Any]


class Distance(Metric):
    """Fréchet distance of what is made from what is there, see `zoo.generative.frechet`, over all images."""

    full_state_update = False
    there: list[Tensor]
    made: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("there", "made"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, there: Tensor, made: Tensor) -> None:
        """Images (B, C, H, W) in [0, 1], both."""
        self.there.append(there)
        self.made.append(made)

    def compute(self) -> Tensor:
        found = frechet(dim_zero_cat(self.there), dim_zero_cat(self.made))
        return torch.tensor(found, device=self.device)


class ImageTokenization(Task):
    r"""Reconstruction of images from their codes; batches are `(images (B, C, H, W), targets)`, targets unused. A `CMD`
    is given clips `(B, C, T, H, W)`.

    The first stage minimises the mean absolute error and the model's side losses (entropy, commitment). The second,
    `generative`, freezes the encoder and teaches the decoder to make images that are distributed as those of the codes:
    of two draws y, y' for an image x it minimises the energy score :math:`|x - y| - \frac12 |y - y'|`, lengths over
    patches. It begins with the weights of a first stage. The paper (arXiv:2508.05599) has a perceptual loss and a
    discriminator besides in the first and second stage, which are large downloads and left out; the energy score is
    ours.

    Logs `{train,val,test}/loss` and `{val,test}/psnr`, in dB for pixels in [0, 1]: the mean over all images; and, of
    images, `frechet`, how far the set of what is made is from that of the images. In the second stage both are of one
    draw: an error of a draw is larger than that of a mean, and a set of means is further from the images.

    Args:
        model: see `Task`, which also has the other arguments; a `WeTok` or a `CMD`.
        generative: the second stage of a `WeTok`: a plain model is made a generative one.
        first_stage: a name with weights, or "local-dir:FOLDER", that a named model without weights of its own begins
            the second stage with.

    Raises:
        ValueError: for a second stage without weights to begin with, or a first stage without a second one.
    """

    unit = "images"

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        generative: bool = False,
        first_stage: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, **kwargs)
        self.generative, self.first_stage = generative, first_stage
        if first_stage is not None and not generative:
            raise ValueError(f"first_stage is what the second one begins with: set generative, got {first_stage!r}")
        if generative and isinstance(model, str):
            if self.fresh and first_stage is None:
                raise ValueError(
                    f"the second stage begins with the weights of a first one, and {model} has none: give "
                    "--model.first_stage a name with weights or local-dir:FOLDER, or --model.model_args.pretrained true"
                )
            self.change(generative=True)
        self.means = nn.ModuleDict({name: Mean() for name in ("loss", "psnr")})
        self.distance = Distance()

    @property
    def fresh(self) -> bool:
        """Whether the model is built without weights."""
        model, options = self.given
        placed = not isinstance(model, str) or model.startswith(("local-dir:", "hf-hub:"))
        return not (placed or options.get("pretrained") or options.get("checkpoint_path"))

    def configure_model(self) -> None:
        if self.model is None and self.generative:
            self.build = self._second_stage(self.build)  # type: ignore[assignment]
        super().configure_model()

    def _second_stage(self, build: Any) -> Any:
        """What makes the model, then with the weights of the first stage and a frozen encoder."""

        def built() -> WeTok:
            model = cast(WeTok, build())
            if not model.config.generative:  # a module that was given
                return generative(model)
            if self.fresh and self.first_stage is not None:
                named = not self.first_stage.startswith(("local-dir:", "hf-hub:"))
                first = zoo.create_model(self.first_stage, pretrained=named)
                zoo.load_weights(model, first.state_dict(), self.first_stage)
            model.encoder.requires_grad_(False)
            return model

        return built

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
        shape = (-1, *[1] * (images.dim() - 2))
        mean, std = (torch.tensor(part, device=images.device).view(shape) for part in _scale(model))
        there, made = (x * std + mean for x in (images, model(images)))
        squares = (made - there).square().flatten(1).mean(1)
        for name, value in {"loss": self._loss(model, images), "psnr": -10 * squares.log10()}.items():
            mean_of = cast(Mean, self.means[name])
            mean_of.update(value)
            self.log(f"{split}/{name}", mean_of, on_epoch=True, prog_bar=True)
        if images.dim() == 4:
            self.distance.update(there.clamp(0, 1), made.clamp(0, 1))
            self.log(f"{split}/frechet", self.distance, on_epoch=True, prog_bar=True)


def _scale(model: Any) -> tuple[Any, Any]:
    return model.config.mean, model.config.std


def patch_lengths(x: Tensor, size: int) -> Tensor:
    """Mean length of the patches of ``size`` pixels a side of x (B, C, H, W), over the square root of their numbers:
    (B,)."""
    patches = nn.functional.unfold(x, size, stride=max(1, size // 2))  # (B, numbers, patches)
    return (patches.square().mean(1) + 1e-8).sqrt().mean(1)
