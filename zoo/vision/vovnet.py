"""VoVNet: chains of convolutions that are aggregated once; version 2 adds squeeze-and-excitation and residuals.

Papers: Lee et al., "An Energy and GPU-Computation Efficient Backbone Network for Real-Time Object Detection", arXiv
1904.09730 (VoVNet); Lee and Park, "CenterMask: Real-Time Anchor-Free Instance Segmentation", arXiv 1911.06667 (version
2, ``ese_``). Sizes are those of the authors' code (stigma0617/VoVNet.pytorch, youngwanLEE/vovnet-detectron2).

The names are timm's, and so are two details in which the authors' weights differ: their VoVNet-39 and -57 are
``vovnet39a`` and ``vovnet57a`` with ``residual=True``, where the input of later blocks of a stage is added, and their
detectors' backbones the ``ese_`` models with ``squeeze="every"``: not only the last block squeezes. A file in their
layout sets both, and a detector's ``num_classes=0`` where no other number is asked for.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

from torch import Tensor, nn

from zoo.config import require_positive
from zoo.layers import OneShotAggregation, conv3x3
from zoo.registry import Paper, register_model
from zoo.vision.hierarchical import HierarchicalConfig, HierarchicalModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class VoVNetConfig(HierarchicalConfig):
    """Options of VoVNet. The first stage is the first two of the stem's convolutions and holds no blocks: its
    entries in ``depths`` and ``mid_dims`` are 0. ``stem_strides`` are those of all three convolutions;
    ``drop_path_rate`` needs residual blocks."""

    stem_strides: tuple[int, ...] = (2, 1, 2)
    stem_dim: int = 128
    """Channels of the stem's third convolution, which enter the second stage."""
    mid_dims: tuple[int, ...]
    """Channels of the chains of each stage."""
    num_layers: int = 5
    """Convolutions of a chain."""
    separable: bool = False
    """The convolutions are depthwise-separable."""
    squeeze: str = "never"
    """Squeeze-and-excitation after the "last" block of a stage, after "every" one, or "never"."""
    residual: bool = False
    """Add the input of the second and later blocks of a stage."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "stem_dim", "num_layers")
        self.require_one_each("mid_dims", least=0)
        if len(self.stem_strides) != 3:
            raise ValueError(f"stem_strides must hold 3 strides, got {self.stem_strides}")
        if self.depths[0] != 0 or 0 in self.depths[1:] or 0 in self.mid_dims[1:]:
            raise ValueError(
                f"depths must start with 0 for the stem, and depths and mid_dims be positive after it, got depths "
                f"{self.depths}, mid_dims {self.mid_dims}"
            )
        if self.squeeze not in ("never", "last", "every"):
            raise ValueError(f"squeeze must be 'never', 'last' or 'every', got {self.squeeze!r}")
        if self.drop_path_rate > 0 and not (self.residual and max(self.depths) > 1):
            raise ValueError(
                f"drop_path_rate {self.drop_path_rate} has no effect: no stage has a residual block, which takes "
                "residual=True and a depth of 2"
            )

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of a stage's input that a pixel of its output stands for, along each side."""
        first, second, third = self.stem_strides
        return (first * second, third, *[2] * (len(self.dims) - 2))

    def map_shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(height, width) of each stage's map: the stem rounds up, the poolings down."""
        shapes = super().map_shapes(height, width)[:2]
        for _ in self.dims[2:]:
            shapes.append((shapes[-1][0] // 2, shapes[-1][1] // 2))
        return shapes


class VoVNet(HierarchicalModel):
    """Stem, stages of ``OneShotAggregation`` with max pooling between them, average pooling, classifier."""

    config: VoVNetConfig

    def __init__(self, config: VoVNetConfig):
        super().__init__(config)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def build_downsample(self, stage: int) -> nn.Module:
        """Two convolutions of the stem, then the third, then poolings."""
        c, (first, second, third) = self.config, self.config.stem_strides
        if stage == 0:
            return nn.Sequential(
                conv3x3(c.in_chans, c.dims[0], first), conv3x3(c.dims[0], c.dims[0], second, c.separable)
            )
        if stage == 1:
            return conv3x3(c.dims[0], c.stem_dim, third, c.separable)
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    def build_block(self, stage: int, index: int, drop_path: float) -> OneShotAggregation:
        """The first block of a stage changes the width."""
        c, out = self.config, self.config.dims[stage]
        entering = c.stem_dim if stage == 1 else c.dims[stage - 1]
        squeeze = c.squeeze == "every" or (c.squeeze == "last" and index == c.depths[stage] - 1)
        return OneShotAggregation(
            out if index else entering,
            c.mid_dims[stage],
            out,
            c.num_layers,
            separable=c.separable,
            squeeze=squeeze,
            residual=c.residual and index > 0,
            drop_path=drop_path,
        )

    def group_matcher(self, coarse: bool = False) -> dict:
        """Regular expressions that sort parameters by depth: a group a stage, or (not coarse) a block."""
        return super().group_matcher(coarse) | {"stem": r"^stages\.0|^stages\.1\.downsample"}

    def _check_shape(self, x: Tensor) -> None:
        super()._check_shape(x)
        stem, pools = math.prod(self.config.stem_strides), 2 ** (len(self.config.dims) - 2)
        if min(x.shape[2:]) <= stem * (pools - 1):
            raise ValueError(
                f"images must have sides of at least {stem * (pools - 1) + 1} pixels, for {len(self.config.dims) - 2} "
                f"poolings after the stem, got {tuple(x.shape[2:])}"
            )


_register = partial(register_model, VoVNet, task="image-classification", family="vovnet")
_V1 = Paper(
    "An Energy and GPU-Computation Efficient Backbone Network for Real-Time Object Detection", "1904.09730", 2019
)
_V2 = Paper("CenterMask: Real-Time Anchor-Free Instance Segmentation", "1911.06667", 2020)
_WIDE: dict[str, Any] = {"dims": (64, 256, 512, 768, 1024), "mid_dims": (0, 128, 160, 192, 224)}
_first = partial(
    VoVNetConfig, interpolation="bilinear"
)  # as the authors of version 1 prepare images; timm says bicubic
_first_wide = partial(_first, **_WIDE)
_wide_ese = partial(VoVNetConfig, **_WIDE, squeeze="last", residual=True)
_slim_ese = partial(
    VoVNetConfig, dims=(64, 112, 256, 384, 512), mid_dims=(0, 64, 80, 96, 112), squeeze="last", residual=True
)


@_register(paper=_V2)
def vovnet_nano():
    return VoVNetConfig(
        img_size=8, in_chans=1, num_classes=10, mean=(0.305,), std=(0.376,), crop_pct=1.0, stem_strides=(1, 1, 1),
        stem_dim=32, dims=(16, 48, 96), depths=(0, 1, 2), mid_dims=(0, 24, 32), num_layers=3,
        squeeze="last", residual=True,
    )  # fmt: skip


@_register(paper=_V1)
def vovnet27_slim():
    return _first(dims=(64, 128, 256, 384, 512), depths=(0, 1, 1, 1, 1), mid_dims=(0, 64, 80, 96, 112))


@_register(paper=_V1)
def vovnet39a():
    return _first_wide(depths=(0, 1, 1, 2, 2))


@_register(paper=_V1)
def vovnet57a():
    return _first_wide(depths=(0, 1, 1, 4, 3))


@_register(paper=_V2)
def ese_vovnet19b_slim_dw():
    return _slim_ese(depths=(0, 1, 1, 1, 1), num_layers=3, stem_dim=64, separable=True)


@_register(paper=_V2)
def ese_vovnet19b_dw():
    return _wide_ese(depths=(0, 1, 1, 1, 1), num_layers=3, stem_dim=64, separable=True)


@_register(paper=_V2)
def ese_vovnet19b():
    return _wide_ese(depths=(0, 1, 1, 1, 1), num_layers=3)


@_register(paper=_V2)
def ese_vovnet19b_slim():
    return _slim_ese(depths=(0, 1, 1, 1, 1), num_layers=3)


@_register(paper=_V2)
def ese_vovnet39b():
    return _wide_ese(depths=(0, 1, 1, 2, 2))


@_register(paper=_V2)
def ese_vovnet57b():
    return _wide_ese(depths=(0, 1, 1, 4, 3), img_size=256, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.95)


@_register(paper=_V2)
def ese_vovnet99b():
    return _wide_ese(depths=(0, 1, 3, 9, 3))
