"""A vision model as a feature extractor: images to a list of maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from zoo.vision.base import VisionModel


class FeatureInfo(list[dict[str, Any]]):
    """What the maps are, shallowest first: dicts with num_chs, reduction and module, and timm's columns of them."""

    def channels(self) -> list[int]:
        """Channels of each map."""
        return [info["num_chs"] for info in self]

    def reduction(self) -> list[int]:
        """Pixels of the image that a feature of each map stands for, along each side."""
        return [info["reduction"] for info in self]

    def module_name(self) -> list[str]:
        """Dotted name of the module that gives each map."""
        return [info["module"] for info in self]

    def get_dicts(self) -> list[dict[str, Any]]:
        """The dicts themselves."""
        return list(self)


class FeatureNet(nn.Module):
    """Images (B, C, H, W) to NCHW maps, shallowest first, with ``feature_info``; what ``features_only=True`` builds.

    Takes ``model`` over: its classifier, its final norm and the blocks after the last map are dropped.

    Args:
        out_indices: blocks or stages to return (negative from the end), the last so many for an int, all for None.

    Raises:
        ValueError: for an index out of range.
    """

    def __init__(self, model: VisionModel, out_indices: int | Sequence[int] | None = None):
        super().__init__()
        self.out_indices = model.prune_intermediate_layers(out_indices, prune_norm=True)
        self.feature_info = FeatureInfo(model.feature_info[index] for index in self.out_indices)
        self.model = model

    @property
    def in_chans(self) -> int:
        """Channels of an image."""
        return self.model.in_chans

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """How images are prepared: the model's, without what concerns its classifier."""
        return {key: v for key, v in self.model.pretrained_cfg.items() if key not in ("num_classes", "classifier")}

    default_cfg = pretrained_cfg

    def forward(self, x: Tensor) -> list[Tensor]:
        """One map (B, num_chs, height, width) for each entry of ``feature_info``.

        Its sides are those of the image over reduction: rounded up by convolutions with a stride, down by poolings (of
        VoVNet behind its stem, SimpleNet, LightCNN). ``config.map_shapes(H, W)`` says them exactly.
        """
        return self.model.forward_intermediates(x, indices=self.out_indices, stop_early=True, intermediates_only=True)  # type: ignore[return-value]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of storing its activations."""
        self.model.set_grad_checkpointing(enable)
