"""What stands on the ground, from the images of cameras."""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.train.tasks.base import Task
from zoo.train.tasks.metrics import Mean

Batch = tuple[Tensor, dict[str, Tensor]]


class BirdsEyeOccupancy(Task):
    """Binary cross-entropy of cells of the ground, and cross-entropy of depths; see `CamerasDataModule` for batches.

    The loss is the mean over cells, plus `depth_weight` times the mean over the pixels whose depth is in a bin. Logs
    `{train,val,test}/loss`, and `{val,test}/iou`, `depth_error`: cells that both answer and truth say are occupied,
    over those that one of them does, and how far the mean of the depths is from the truth, in bins.

    Args:
        model: see `Task`, which also has the other arguments.
        depth_weight: 0 leaves the depths to the cells.

    Raises:
        ValueError: for a negative weight.
    """

    unit = "scenes"

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        depth_weight: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, **kwargs)
        if not depth_weight >= 0:
            raise ValueError(f"depth_weight must be 0 or more, got {depth_weight}")
        self.depth_weight = depth_weight
        self.means = nn.ModuleDict({name: Mean() for name in ("loss", "iou", "depth_error")})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        logits, depth = self.trained(images, return_depth=True)
        return self.log_training(occupancy_loss(logits, depth, targets, self.depth_weight))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, split: str) -> None:
        images, targets = batch
        logits, depth = self.evaluated(images, return_depth=True)
        loss = occupancy_loss(logits, depth, targets, self.depth_weight)
        occupied, wanted = logits > 0, targets["occupancy"] > 0
        either = (occupied | wanted).sum()
        known = targets["depth"] >= 0
        bins = depth.float().softmax(-1) @ depth.new_tensor(range(depth.shape[-1])).float()
        values = {
            "loss": (loss, len(images)),
            "iou": ((occupied & wanted).sum() / either.clamp(min=1), either),
            "depth_error": ((bins - targets["depth"]).abs()[known].sum() / known.sum().clamp(min=1), known.sum()),
        }
        for name, (value, count) in values.items():
            mean = cast(Mean, self.means[name])
            mean.update(value, count)
            self.log(f"{split}/{name}", mean, on_epoch=True, prog_bar=True)


def occupancy_loss(logits: Tensor, depth: Tensor, targets: dict[str, Tensor], depth_weight: float) -> Tensor:
    """Of logits of cells (B, G, G) and of bins (B, V, H, W, D), see `BirdsEyeOccupancy`."""
    loss = F.binary_cross_entropy_with_logits(logits.float(), targets["occupancy"])
    if depth_weight == 0:
        return loss
    flat, bins = depth.float().flatten(0, -2), targets["depth"].flatten()
    known = (bins >= 0).sum().clamp(min=1)
    return loss + depth_weight * F.cross_entropy(flat, bins, ignore_index=-1, reduction="sum") / known
