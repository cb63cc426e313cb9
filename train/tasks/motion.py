"""Motions of clips, given what moves (CMD)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

import zoo
from zoo.generative import CMD, CMDConfig, MotionDiT
from zoo.train.tasks.diffusion import Batch, ImageDiffusion, velocity_errors


class MotionDiffusion(ImageDiffusion):
    """Mean square error of the velocity of motions; batches are `(clips (B, C, T, H, W), kinds)`, kinds unused.

    A frozen autoencoder, which is no part of the task's state, makes motions and content frames of the clips; the model
    is given the frames. Times, noise, evaluation and logs are those of `ImageDiffusion`.

    Args:
        model: see `Task`, which also has the other arguments; a `MotionDiT`.
        autoencoder: "local-dir:FOLDER", or a name with published or bundled weights, of a `CMD`.
        logit_normal, times: as of `ImageDiffusion`.

    Raises:
        ValueError: for a model of other motions than the autoencoder's.
    """

    unit = "clips"
    reads_data = False  # the autoencoder is given clips, the model motions

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        autoencoder: str,
        logit_normal: bool = False,
        times: tuple[float, float] = (0.0, 1.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, logit_normal=logit_normal, times=times, **kwargs)
        made, read = cast(nn.Module, zoo.create_model(autoencoder, device="meta")), self.sketch()
        if not isinstance(made, CMD) or not isinstance(read, MotionDiT):
            raise ValueError(f"motions are a CMD's and read by a MotionDiT, got {type(made).__name__} and "
                             f"{type(read).__name__}")  # fmt: skip
        makes: CMDConfig = made.config
        shapes = makes.motion_shape, (makes.in_chans, *makes.image_shape)
        if shapes != (read.config.input_shape, read.config.content_shape):
            raise ValueError(
                f"the model reads motions and frames of {read.config.input_shape} and {read.config.content_shape}, "
                f"{autoencoder} makes {shapes[0]} and {shapes[1]}"
            )
        self.autoencoder = autoencoder
        self.made: tuple[CMD, ...] = ()  # no module of the task

    def configure_model(self) -> None:
        if self.model is None:
            pretrained = not self.autoencoder.startswith(("local-dir:", "hf-hub:"))
            self.made = (cast(CMD, zoo.create_model(self.autoencoder, pretrained).eval().requires_grad_(False)),)
        super().configure_model()

    def on_fit_start(self) -> None:
        """Motions are normalised as the model has it, which how clips are prepared does not change."""

    @torch.no_grad()
    def motions(self, model: MotionDiT, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Motions of clips, as the model reads them, and their content frames."""
        motion, content = self.made[0].to(clips.device).encode(clips)
        return model.normalised(motion), content

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        model = cast(MotionDiT, self.trained)
        motion, content = self.motions(model, batch[0])
        noise, t = torch.randn_like(motion), self.drawn_times(motion)
        return self.log_training(model.errors(motion, noise, t, content=content).mean())

    def measured(self, batch: Batch, seed: int) -> Tensor:
        model = cast(MotionDiT, self.evaluated)
        motion, content = self.motions(model, batch[0])
        return velocity_errors(model, motion, None, seed, content=content)
