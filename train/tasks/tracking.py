"""Segmentation of one object through a video, from a prompt on the first frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.train.tasks.base import Task
from zoo.train.tasks.metrics import Mean
from zoo.video import Prompt, Tracked

Batch = tuple[Tensor, dict[str, Tensor]]
PROMPTS = ("point", "box", "mask")
LATE = 8  # the first frame that is late
ALPHA, GAMMA = 0.25, 2.0  # of the focal loss
WEIGHTS = {"focal": 20.0, "cross_entropy": 0.0, "dice": 1.0, "iou": 1.0, "seen": 1.0}  # SAM 2's


class VideoSegmentation(Task):
    r"""The losses of SAM 2; batches are `(clips (B, T, C, S, S) in [0, 1], {masks, points, boxes})`, see
    `ClipsDataModule`.

    Of each frame, the masks that a model considers are compared with the object's, and the nearest counts,

    .. math:: 20 \, \text{focal} + \text{dice} + |\hat u - u| + \text{cross-entropy of its being seen}

    with u the overlaps of all of them; where the object is not seen the last term alone. (arXiv:2408.00714, appendix;
    focal loss with weight 1/4 and power 2, a mean over pixels.) The prompts of training take turns. `weights` changes
    those of the terms.

    Logs `{train,val,test}/loss`, and of evaluations, which leave out the first frame: `j`, the mean over clips and
    frames of |P and M| / |P or M|, 1 where both are empty; `j_late`, that of the eighth frame and later ones; and
    `seen`, how often it says rightly whether there is something to be seen.

    Args:
        model: see `Task`, which also has the other arguments.
        prompts: what training gives in turns, of "point", "box" and "mask".
        prompt: what evaluation gives.
        remembers: evaluation goes on from frame to frame; False reads each frame by itself, with the first one's
            prompt.
        weights: of terms of the loss where they are not SAM 2's, of "focal" (20), "cross_entropy" of pixels (0),
            "dice" (1), "iou" (1), the error of what overlap is expected, and "seen" (1).

    Raises:
        ValueError: for another prompt, another term or a weight below zero.
    """

    unit = "clips"

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        prompts: Sequence[str] = ("point", "box"),
        prompt: str = "point",
        remembers: bool = True,
        weights: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, **kwargs)
        if unknown := {prompt, *prompts} - set(PROMPTS) or (not prompts and {"none"}):
            raise ValueError(f"prompts must be of {', '.join(PROMPTS)}, got {', '.join(sorted(unknown))}")
        given = weights or {}
        if wrong := {name: weight for name, weight in given.items() if name not in WEIGHTS or not weight >= 0}:
            raise ValueError(f"weights must be of {', '.join(WEIGHTS)} and 0 or more, got {wrong}")
        self.weights = WEIGHTS | given
        self.prompts, self.prompt, self.remembers = tuple(prompts), prompt, remembers
        self.means = nn.ModuleDict({name: Mean() for name in ("loss", "j", "j_late", "seen")})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        clips, targets = batch
        model: Any = self.trained
        tracked = model.track(model.normalised(clips), prompt_of(targets, self.prompts[batch_idx % len(self.prompts)]))
        return self.log_training(tracking_loss(tracked, targets["masks"], self.weights))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logits (B, T, S, S)."""
        clips, targets = batch
        model: Any = self.evaluated
        return model(model.normalised(clips), prompt_of(targets, self.prompt))

    def _evaluate(self, batch: Batch, split: str) -> None:
        clips, targets = batch
        model: Any = self.evaluated
        frames, prompt = model.normalised(clips), prompt_of(targets, self.prompt)
        if self.remembers:
            tracked = model.track(frames, prompt)
        else:
            tracked = [model.step(frame, model.init_state(), prompt) for frame in frames.unbind(1)]
        masks = targets["masks"]
        overlap = jaccard(torch.stack([found.mask for found in tracked], 1) > 0, masks)
        said = torch.stack([found.score for found in tracked], 1) > 0
        loss = tracking_loss(tracked, masks, self.weights)
        values = {"loss": loss, "j": overlap[:, 1:], "j_late": overlap[:, LATE - 1 :],
                  "seen": (said == masks.flatten(2).any(2))[:, 1:].float()}  # fmt: skip
        for name, value in values.items():
            if not value.numel():  # no frame is late
                continue
            mean = cast(Mean, self.means[name])
            mean.update(value, len(clips) if value.dim() == 0 else None)
            self.log(f"{split}/{name}", mean, on_epoch=True, prog_bar=True)


def prompt_of(targets: dict[str, Tensor], kind: str) -> Prompt:
    """Of the first frame: a point on the object, the box around it or what is seen of it."""
    if kind == "point":
        points = targets["points"]
        return Prompt(points, torch.ones(points.shape[:2], dtype=torch.long, device=points.device))
    return Prompt(boxes=targets["boxes"]) if kind == "box" else Prompt(mask=targets["masks"][:, 0])


def jaccard(found: Tensor, masks: Tensor) -> Tensor:
    """|P and M| / |P or M| of masks (..., S, S) bool, 1 where both are empty: the region similarity J of DAVIS.

    Source: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation" (2016).
    """
    shared, either = ((part(found, masks)).flatten(-2).sum(-1) for part in (torch.logical_and, torch.logical_or))
    return torch.where(either == 0, 1.0, shared / either.clamp_min(1))


def tracking_loss(tracked: Sequence[Tracked], masks: Tensor, weights: Mapping[str, float] = WEIGHTS) -> Tensor:
    """The mean over frames and clips, see `VideoSegmentation`; masks (B, T, S, S) bool."""
    losses = [_of_frame(found, wanted, weights) for found, wanted in zip(tracked, masks.unbind(1), strict=True)]
    return torch.stack(losses).mean()


def _of_frame(found: Tracked, wanted: Tensor, weights: Mapping[str, float]) -> Tensor:
    seen = wanted.flatten(1).any(1).float()
    logits = F.interpolate(found.masks.float(), wanted.shape[-2:], mode="bilinear").flatten(2)  # (B, K, S S)
    target = wanted.flatten(1)[:, None].float().expand_as(logits)
    near = weights["dice"] * dice_loss(logits, target)
    if weights["focal"]:
        near = near + weights["focal"] * focal_loss(logits, target)
    if weights["cross_entropy"]:
        crossed = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(-1)
        near = near + weights["cross_entropy"] * crossed
    true = jaccard(logits.detach()[..., None] > 0, target[..., None] > 0)
    of_mask = near.amin(1) + weights["iou"] * (found.ious.float() - true).abs().mean(1)
    of_sight = F.binary_cross_entropy_with_logits(found.score.float(), seen, reduction="none")
    return (seen * of_mask + weights["seen"] * of_sight).mean()


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """(B, K, N) twice -> (B, K): cross-entropies weighed by how wrong a pixel is, and zeros more than ones.

    Paper: Lin et al., "Focal Loss for Dense Object Detection", arXiv:1708.02002.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    wrong = 1 - torch.exp(-cross_entropy)
    weight = ALPHA * target + (1 - ALPHA) * (1 - target)
    return (weight * wrong**GAMMA * cross_entropy).mean(-1)


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """(B, K, N) twice -> (B, K): 1 less the soft Dice coefficient."""
    probability = logits.sigmoid()
    return 1 - (2 * (probability * target).sum(-1) + 1) / (probability.sum(-1) + target.sum(-1) + 1)
