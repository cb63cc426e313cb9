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

    Takes ``model`` over: its classifier and the blocks after the last map are dropped.

    Args:
        out_indices: blocks or stages to return (negative from the end), the last so many for an int, all for None.

    Raises:
        ValueError: for an index out of range.
    """

    def __init__(self, model: VisionModel, out_indices: int | Sequence[int] | None = None):
        super().__init__()
        self.out_indices = model.feature_indices(out_indices)
        self.feature_info = FeatureInfo(model.feature_info[index] for index in self.out_indices)
        model.reset_classifier(0)
        del model.layer_list()[1][self.out_indices[-1] + 1 :]
        self.model = model

    def forward(self, x: Tensor) -> list[Tensor]:
        """One map (B, num_chs, ceil(H / reduction), ceil(W / reduction)) for each entry of ``feature_info``."""
        return self.model.forward_intermediates(x, indices=self.out_indices, stop_early=True, intermediates_only=True)  # type: ignore[return-value]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of storing its activations."""
        self.model.set_grad_checkpointing(enable)
