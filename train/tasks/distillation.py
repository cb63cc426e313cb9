"""A teacher whose predictions a classifier or a language model also learns from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.divergence import TopK

Kind = Literal["hard", "soft", "top_k"]


class Teacher(ABC):
    """What a frozen model adds to the loss. With student logits Zs, teacher logits Zt and targets y:

        hard    (1 - w) CE(Zs, y) + w CE(Zs, argmax Zt)
        soft    (1 - w) CE(Zs, y) + w t^2 KL(softmax(Zt / t) || softmax(Zs / t))
        top_k   (1 - w) CE(Zs, y) + w t^2 TopK(softmax(Zt / t), softmax(Zs / t)), see `zoo.divergence.TopK`

    It is no part of the task's state: checkpoints and averages leave it out.

    Args:
        name: "local-dir:FOLDER", or a name with published or bundled weights.
        kind: see above.
        weight: w.
        temperature: t.
        top_k: fields of `zoo.divergence.TopK`.

    Raises:
        ValueError: an unknown kind or name, or a number out of range. TypeError: a field that there is not.

    Papers: Touvron et al., "Training data-efficient image transformers", arXiv 2012.12877; of top_k arXiv 2501.06218.
    """

    def __init__(
        self, name: str, kind: Kind, weight: float, temperature: float, top_k: Mapping[str, Any] | None = None
    ) -> None:
        if kind not in ("hard", "soft", "top_k") or not 0 <= weight <= 1 or temperature <= 0:
            raise ValueError(
                "distillation must be 'hard', 'soft' or 'top_k', its weight in [0, 1] and its temperature above 0, got "
                f"{kind!r}, {weight} and {temperature}"
            )
        self.name, self.kind, self.weight, self.temperature = name, kind, weight, temperature
        self.divergence = TopK(**(top_k or {}))
        self.model: nn.Module | None = None
        zoo.create_model(name, device="meta")

    def build(self) -> None:
        """Load it, with its weights."""
        pretrained = not self.name.startswith(("local-dir:", "hf-hub:"))
        self.model = zoo.create_model(self.name, pretrained).eval().requires_grad_(False)

    @abstractmethod
    def check(self, student: Any) -> None:
        """Raise a ValueError where a student sees other inputs or classes."""

    @abstractmethod
    def logits(self, inputs: Tensor, student: Any) -> Tensor:
        """Of inputs as they are prepared for the student, float32."""

    def on(self, device: torch.device) -> Any:
        """The model, there."""
        assert self.model is not None, "build() comes first"
        return self.model.to(device)

    def mixed(self, loss: Tensor, logits: Tensor, taught: Tensor) -> Tensor:
        """The loss with the teacher's part, of student logits and teacher logits (M, num_classes)."""
        if self.kind == "hard":
            part = F.cross_entropy(logits, taught.argmax(1))
        else:
            student, teacher = ((z / self.temperature).log_softmax(1) for z in (logits, taught))
            if self.kind == "soft":
                part = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
            else:
                part = self.divergence(student, teacher).mean()
            part = self.temperature**2 * part
        return (1 - self.weight) * loss + self.weight * part


class ImageTeacher(Teacher):
    """An image classifier: images come as the student's are prepared, and are normalised anew where the teacher's mean
    and deviation are others."""

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """How its images are prepared, as of every image classifier."""
        return self.model.pretrained_cfg  # pyright: ignore

    def check(self, student: Any) -> None:
        ours, theirs = student.pretrained_cfg, self.pretrained_cfg
        for field in ("input_size", "num_classes"):
            if ours[field] != theirs[field]:
                raise ValueError(f"the teacher {self.name} has {field} {theirs[field]}, the student {ours[field]}")

    @torch.no_grad()
    def logits(self, inputs: Tensor, student: Any) -> Tensor:
        """(B, C, H, W), prepared for the student, to (B, num_classes)."""
        ours, theirs = student.pretrained_cfg, self.pretrained_cfg
        mean, std, own_mean, own_std = (
            torch.tensor(cfg[name], device=inputs.device, dtype=inputs.dtype)[:, None, None]
            for cfg in (ours, theirs)
            for name in ("mean", "std")
        )
        return self.on(inputs.device)(inputs * (std / own_std) + (mean - own_mean) / own_std).float()


class LanguageTeacher(Teacher):
    """A language model of the same tokens."""

    def check(self, student: Any) -> None:
        ours, theirs = student.config.vocab_size, self.model.config.vocab_size  # pyright: ignore
        if ours != theirs:
            raise ValueError(f"the teacher {self.name} has vocab_size {theirs}, the student {ours}")

    @torch.no_grad()
    def logits(self, inputs: Tensor, student: Any) -> Tensor:
        """(B, T) to (B, T, vocab_size)."""
        return self.on(inputs.device)(inputs).float()
