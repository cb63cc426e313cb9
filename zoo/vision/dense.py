"""Backbones under detection and segmentation heads: any model's feature maps as a pyramid, and UperNet over them."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from zoo.layers.conv.pyramid import Scales, UperHead, resize
from zoo.vision.features import FeatureNet


class Pyramid(nn.Module):
    """Images to maps of falling resolution, by level: what torchvision's detectors call a backbone.

    The stages of a hierarchical model are levels as they are. The maps of a model over patches have one resolution:
    four of them, or one taken four times, become levels by ``Scales``. Then torchvision's ``FeaturePyramidNetwork``
    brings them to one width and adds the coarse to the fine.

    Args:
        net: what ``create_model(..., features_only=True)`` gives, with ``out_indices`` of one or four blocks for a
            model over patches.
        out_channels: width of all levels; None leaves the maps as they are.

    Attributes:
        channels, reductions: of each level: channels, and pixels of the image that a feature stands for.
        out_channels: as given.

    Raises:
        ValueError: for another number of maps of one resolution.

    Paper: Lin et al., "Feature Pyramid Networks for Object Detection", arXiv 1612.03144.
    """

    def __init__(self, net: FeatureNet, out_channels: int | None = 256):
        super().__init__()
        self.net, self.out_channels = net, out_channels
        self.channels, self.reductions = net.feature_info.channels(), [float(r) for r in net.feature_info.reduction()]
        self.scales: nn.Module | None = None
        if net.model.config.map_shape is None:
            count = len(self.channels)
            if count not in (1, len(Scales.FACTORS)):
                raise ValueError(f"maps of one resolution must be 1 or 4, got {count}: choose them by out_indices")
            self.scales = Scales(self.channels[0])
            self.channels = self.channels[:1] * len(Scales.FACTORS)
            self.reductions = [self.reductions[0] / factor for factor in Scales.FACTORS]
        self.fpn: nn.Module | None = None
        if out_channels is not None:
            from torchvision.ops import FeaturePyramidNetwork

            self.fpn = FeaturePyramidNetwork(self.channels, out_channels)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Images (B, C, H, W) to {level: (B, out_channels, h, w)}, the largest map first."""
        maps = self.net(x) if self.scales is None else self.scales(self.net(x))
        levels = OrderedDict((str(level), features) for level, features in enumerate(maps))
        return levels if self.fpn is None else self.fpn(levels)


class UperNet(nn.Module):
    """Segmentation by ``UperHead`` over the levels of ``Pyramid``.

    Args:
        net: see ``Pyramid``.
        num_classes: outputs a pixel.
        dim: width of the head.

    Paper: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", arXiv 1807.10221.
    """

    def __init__(self, net: FeatureNet, num_classes: int, dim: int = 512):
        super().__init__()
        self.pyramid = Pyramid(net, None)
        self.head = UperHead(self.pyramid.channels, dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, num_classes, H, W)."""
        return resize(self.head(list(self.pyramid(x).values())), x.shape[2:])
