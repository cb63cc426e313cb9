"""A smaller U-Net that learns of a larger one."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

import zoo
from zoo.generative import UNet
from zoo.generative.classes import wanted
from zoo.generative.koala import SITES, check_kept, distances, inherit, matched
from zoo.train.tasks.diffusion import Batch, ImageDiffusion


class UNetDistillation(ImageDiffusion):
    """The velocity along the path, that of a larger U-Net, and what its blocks make: see `zoo.generative.koala`.

    The student begins with the blocks of the teacher that it keeps. Images, times, noise and hidden classes are the
    same for both. Evaluation is that of `ImageDiffusion`; the teacher is no part of the task's state.

    Args:
        model: see `Task`, which also has the other arguments; a `UNet`.
        teacher: "local-dir:FOLDER", or a name with published or bundled weights, of a `UNet`.
        features: "self_attention", as KOALA has it; "cross_attention", "feed_forward", "residual" or "last", which it
            compares that with; None for none.
        output_weight, feature_weight: lambda_o and lambda_f.
        inherits: begin with the teacher's blocks; fresh where False.
        logit_normal, times: as of `ImageDiffusion`.

    Raises:
        ValueError: for features that there are not, weights below 0, or a student that is no part of the teacher.

    Paper: Lee et al., "KOALA", arXiv 2312.04005.
    """

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        teacher: str = "unet_nano",
        features: str | None = "self_attention",
        output_weight: float = 1.0,
        feature_weight: float = 1.0,
        inherits: bool = True,
        logit_normal: bool = False,
        times: tuple[float, float] = (0.0, 1.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, logit_normal=logit_normal, times=times, **kwargs)
        if features is not None and features not in SITES:
            raise ValueError(f"features must be one of {', '.join(SITES)} or None, got {features!r}")
        if min(output_weight, feature_weight) < 0:
            raise ValueError(f"weights must be at least 0, got {output_weight} and {feature_weight}")
        sketches = self.sketch(), zoo.create_model(teacher, device="meta")
        if not all(isinstance(sketch, UNet) for sketch in sketches):
            raise ValueError(
                f"student and teacher must be U-Nets, got {' and '.join(type(s).__name__ for s in sketches)}"
            )
        student, known = (cast(UNet, sketch).config for sketch in sketches)
        check_kept(student, known)
        self.teacher, self.features, self.inherits = teacher, features, inherits
        self.output_weight, self.feature_weight = output_weight, feature_weight
        self.taught: tuple[UNet, ...] = ()  # no module of the task

    def configure_model(self) -> None:
        if self.model is None:
            pretrained = not self.teacher.startswith(("local-dir:", "hf-hub:"))
            teacher = cast(UNet, zoo.create_model(self.teacher, pretrained).eval().requires_grad_(False))
            self.taught, build = (teacher,), self.build
            if self.inherits:
                self.build = lambda: inherit(cast(UNet, build()), teacher)  # type: ignore[assignment]
        super().configure_model()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, classes = batch
        student, (teacher,) = cast(UNet, self.trained), self.taught
        config, t = student.config, self.drawn_times(images)
        classes = wanted(classes, images, config.num_classes, config.class_drop_rate)
        x, velocity = student.path.at(images, torch.randn_like(images), t)
        pairs = matched(student, teacher, self.features) if self.features else {}
        made, output, features = distances(student, teacher.to(images.device), x, t, classes, pairs)
        task = (made - velocity).square().mean()
        loss = task + self.output_weight * output + self.feature_weight * features
        return self.log_training(loss, task=task, output=output, features=features)
