"""A teacher whose predictions an image classifier also learns from."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo


class Teacher:
    """What a frozen image classifier adds to the loss. With student logits Zs, teacher logits Zt and targets y:

        hard    (1 - w) CE(Zs, y) + w CE(Zs, argmax Zt)
        soft    (1 - w) CE(Zs, y) + w t^2 KL(softmax(Zt / t) || softmax(Zs / t))

    It is no part of the task's state: checkpoints and averages leave it out. Images come as the student's are prepared,
    and are normalised anew where the teacher's mean and deviation are others.

    Args:
        name: "local-dir:FOLDER", or a name with published or bundled weights.
        kind: see above.
        weight: w.
        temperature: t.

    Raises:
        ValueError: an unknown kind or name, or a number out of range.

    Paper: Touvron et al., "Training data-efficient image transformers", arXiv 2012.12877.
    """

    def __init__(self, name: str, kind: Literal["hard", "soft"], weight: float, temperature: float) -> None:
        if kind not in ("hard", "soft") or not 0 <= weight <= 1 or temperature <= 0:
            raise ValueError(
                "distillation must be 'hard' or 'soft', its weight in [0, 1] and its temperature above 0, got "
                f"{kind!r}, {weight} and {temperature}"
            )
        self.name, self.kind, self.weight, self.temperature = name, kind, weight, temperature
        self.model: nn.Module | None = None
        zoo.create_model(name, device="meta")

    def build(self) -> None:
        """Load it, with its weights."""
        pretrained = not self.name.startswith(("local-dir:", "hf-hub:"))
        self.model = zoo.create_model(self.name, pretrained).eval().requires_grad_(False)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """How its images are prepared, as of every image classifier."""
        return self.model.pretrained_cfg  # pyright: ignore

    def check(self, student: Any) -> None:
        """Raise a ValueError where a student sees other images or classes."""
        ours, theirs = student.pretrained_cfg, self.pretrained_cfg
        for field in ("input_size", "num_classes"):
            if ours[field] != theirs[field]:
                raise ValueError(f"the teacher {self.name} has {field} {theirs[field]}, the student {ours[field]}")

    @torch.no_grad()
    def logits(self, images: Tensor, student: Any) -> Tensor:
        """(B, C, H, W), prepared for the student, to (B, num_classes)."""
        assert self.model is not None, "build() comes first"
        self.model.to(images.device)
        ours, theirs = student.pretrained_cfg, self.pretrained_cfg
        mean, std, own_mean, own_std = (
            torch.tensor(cfg[name], device=images.device, dtype=images.dtype)[:, None, None]
            for cfg in (ours, theirs)
            for name in ("mean", "std")
        )
        return self.model(images * (std / own_std) + (mean - own_mean) / own_std).float()

    def mixed(self, loss: Tensor, logits: Tensor, taught: Tensor) -> Tensor:
        """The loss with the teacher's part, of student logits and teacher logits (B, num_classes)."""
        if self.kind == "hard":
            part = F.cross_entropy(logits, taught.argmax(1))
        else:
            student, teacher = ((z / self.temperature).log_softmax(1) for z in (logits, taught))
            part = self.temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return (1 - self.weight) * loss + self.weight * part
