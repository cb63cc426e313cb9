"""MCUNet: networks of inverted residuals for microcontrollers, and the small MobileNetV2 and ProxylessNAS beside them.

Papers: Lin et al., "MCUNet: Tiny Deep Learning on IoT Devices", arXiv 2007.10319, and "MCUNetV2: Memory-Efficient
Patch-based Inference for Tiny Deep Learning", arXiv 2110.15352, whose patch-based inference is ``zoo.vision.patches``.
Configurations are those of the authors' model zoo (mit-han-lab/mcunet); those of the second paper's own networks were
not published.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from torch import nn

from zoo.config import require_positive
from zoo.layers.conv import InvertedResidual, ReLU6ConvNorm
from zoo.registry import Paper, register_model
from zoo.vision.hierarchical import HierarchicalConfig, HierarchicalModel

Block = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MCUNetConfig(HierarchicalConfig):
    """Options of MCUNet. ``dims`` are the channels at the end of each stage; ``depths`` the blocks of each stage
    besides the one with stride 2, and in the last the 1x1 convolution that may end it."""

    stem_strides: tuple[int, ...] = (2,)
    stem_dim: int = 16
    """Channels of the first convolution, which has stem_strides."""
    blocks: tuple[tuple[Block, ...], ...]
    """For each stage its blocks, (expansion, kernel size, channels); the first of every stage but the first has
    stride 2."""
    mix_dim: int = 0
    """Channels of the 1x1 convolution that ends the last stage, 0 for none."""
    norm_eps: float = 1e-5
    """Added to the variance in the batch norms."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: str = "bilinear"

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "stem_dim")
        blocks = tuple(tuple((e, k, c) for e, k, c in stage) for stage in self.blocks)
        object.__setattr__(self, "blocks", blocks)  # lists after a round through JSON
        if len(self.stem_strides) != 1:
            raise ValueError(f"stem_strides must hold 1 stride, got {self.stem_strides}")
        for expand, kernel, dim in (block for stage in blocks for block in stage):
            if expand < 1 or kernel % 2 == 0 or dim < 1:
                raise ValueError(f"a block is (expansion, odd kernel size, channels), got {(expand, kernel, dim)}")
        if (self.dims, self.depths) != shape_of(blocks, self.mix_dim):
            raise ValueError(
                f"dims and depths must be those of the blocks, {shape_of(blocks, self.mix_dim)}, got {self.dims}, "
                f"{self.depths}"
            )


class MCUNet(HierarchicalModel):
    """Stem, stages of ``InvertedResidual``, average pooling, classifier."""

    config: MCUNetConfig

    def __init__(self, config: MCUNetConfig):
        super().__init__(config)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = config.norm_eps

    def build_downsample(self, stage: int) -> nn.Module:
        """The stem, or the block with stride 2."""
        c = self.config
        if stage == 0:
            return nn.Sequential(ReLU6ConvNorm(c.in_chans, c.stem_dim, 3, c.stem_strides[0]))
        expand, kernel, dim = c.blocks[stage][0]
        return InvertedResidual(c.blocks[stage - 1][-1][2], dim, expand, kernel, 2)

    def build_block(self, stage: int, index: int, drop_path: float) -> nn.Module:
        """A block of stride 1, or the last convolution."""
        blocks, place = self.config.blocks[stage], index + (stage > 0)
        before = blocks[place - 1][2] if place else self.config.stem_dim
        if place == len(blocks):
            return ReLU6ConvNorm(before, self.config.mix_dim)
        expand, kernel, dim = blocks[place]
        return InvertedResidual(before, dim, expand, kernel, 1, drop_path)


def shape_of(blocks: tuple[tuple[Block, ...], ...], mix_dim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """dims and depths of stages of blocks."""
    dims = [stage[-1][2] for stage in blocks]
    depths = [len(stage) - (index > 0) for index, stage in enumerate(blocks)]
    if mix_dim:
        dims[-1], depths[-1] = mix_dim, depths[-1] + 1
    return tuple(dims), tuple(depths)


def redistribute(config: MCUNetConfig, stages: int) -> MCUNetConfig:
    """The receptive field moved from the first ``stages`` stages to the rest (MCUNetV2, section 3.2).

    Kernels of stride 1 in the first stages become 1x1, so that patches of them overlap less, and as many blocks of
    stride 1 after them have kernels larger by two in exchange.

    Raises:
        ValueError: for a number of stages that leaves none.
    """
    if not 0 < stages < len(config.blocks):
        raise ValueError(f"stages must be from 1 to {len(config.blocks) - 1}, got {stages}")
    taken, blocks = 0, []
    for index, stage in enumerate(config.blocks):
        changed = []
        for place, (expand, kernel, dim) in enumerate(stage):
            strided = index > 0 and place == 0
            if index < stages and not strided and kernel > 1:
                taken, kernel = taken + 1, 1
            elif index >= stages and not strided and taken:
                taken, kernel = taken - 1, kernel + 2
            changed.append((expand, kernel, dim))
        blocks.append(tuple(changed))
    return dataclasses.replace(config, blocks=tuple(blocks))


_register = partial(
    register_model, MCUNet, task="image-classification", family="mcunet",
    paper=Paper("MCUNetV2: Memory-Efficient Patch-based Inference for Tiny Deep Learning", "2110.15352", 2021),
)  # fmt: skip


def _config(text: str, mix_dim: int = 0, **options) -> MCUNetConfig:
    """Stages apart by "|", blocks by spaces: expansion,kernel,channels."""
    blocks = tuple(
        tuple((int(e), int(k), int(c)) for e, k, c in (block.split(",") for block in stage.split()))
        for stage in text.split("|")
    )
    dims, depths = shape_of(blocks, mix_dim)
    return MCUNetConfig(blocks=blocks, dims=dims, depths=depths, mix_dim=mix_dim, **options)


_VWW: dict[str, Any] = {"num_classes": 2, "crop_pct": 1.0, "crop_mode": "squash"}  # a crop might cut the person off


@_register()
def mcunet_nano():
    return _config(
        "1,3,16 3,3,16 | 4,3,32 3,5,32 | 4,3,64 3,3,64", stem_strides=(1,), img_size=8, in_chans=1, num_classes=10,
        mean=(0.305,), std=(0.376,), crop_pct=1.0,
    )  # fmt: skip


@_register()
def mbv2_w035():
    return _config(
        "1,3,8 | 6,3,8 6,3,8 | 6,3,16 6,3,16 6,3,16 | 6,3,24 6,3,24 6,3,24 6,3,24 6,3,32 6,3,32 6,3,32 | "
        "6,3,56 6,3,56 6,3,56 6,3,112",
        mix_dim=448, img_size=144, norm_eps=1e-3, drop_rate=0.2,
    )  # fmt: skip


@_register()
def proxyless_w03():
    return _config(
        "1,3,8 | 3,5,16 3,3,16 | 3,7,16 3,3,16 3,5,16 3,5,16 | "
        "6,7,24 3,5,24 3,5,24 3,5,24 6,5,32 3,5,32 3,5,32 3,5,32 | 6,7,64 6,7,64 3,7,64 3,7,64 6,7,96",
        mix_dim=384, img_size=176, norm_eps=1e-3,
    )  # fmt: skip


@_register()
def mcunet_in0():
    return _config(
        "1,3,16 | 4,5,16 3,3,16 4,3,16 | 5,7,24 4,5,24 5,5,24 | 5,7,48 4,5,48 5,3,56 4,5,56 5,3,56 | "
        "6,3,112 4,5,112 6,3,192",
        stem_dim=24, img_size=48,
    )  # fmt: skip


@_register()
def mcunet_in1():
    return _config(
        "1,3,8 | 4,3,16 3,3,16 | 3,7,24 5,3,24 | 5,3,40 4,7,40 4,5,48 3,3,48 4,3,48 | 5,7,96 4,5,96 4,5,96 6,3,160",
        img_size=96,
    )  # fmt: skip


@_register()
def mcunet_in2():
    return _config(
        "1,3,8 | 3,5,16 6,7,16 5,3,16 5,5,16 | 5,3,24 6,7,24 6,5,24 | 4,7,40 5,5,40 5,3,48 5,5,48 4,3,48 | "
        "6,5,96 4,5,96 3,5,96 4,3,96 5,5,160",
        img_size=160,
    )  # fmt: skip


@_register()
def mcunet_in3():
    return _config(
        "1,3,8 | 3,7,16 5,3,16 5,7,16 4,5,16 | 5,5,24 5,5,24 5,5,24 | 5,3,40 6,7,40 4,5,40 5,5,48 5,7,48 5,3,48 | "
        "6,3,96 5,7,96 4,3,96 5,7,160",
        img_size=176,
    )  # fmt: skip


@_register()
def mcunet_in4():
    return _config(
        "1,3,16 | 3,7,24 5,3,24 4,5,24 | 5,7,40 4,3,40 4,7,40 | 3,7,80 3,3,80 3,7,80 4,3,96 3,5,96 3,5,96 | "
        "4,7,192 3,7,192 3,5,192 4,5,320",
        stem_dim=32, img_size=160,
    )  # fmt: skip


@_register()
def mcunet_vww0():
    return _config(
        "1,3,8 | 6,5,16 4,3,16 | 5,3,24 4,3,24 4,3,24 | 5,3,40 4,3,40 3,7,40 3,3,48 4,3,48 | 5,7,96 5,5,96 4,7,160",
        img_size=64, **_VWW,
    )  # fmt: skip


@_register()
def mcunet_vww1():
    return _config(
        "1,3,8 | 6,3,16 3,3,16 3,3,16 | 3,7,24 6,3,24 5,5,24 | 6,7,40 6,7,40 6,3,48 4,3,48 | "
        "5,5,96 5,3,96 4,3,96 3,7,160",
        img_size=80, **_VWW,
    )  # fmt: skip


@_register()
def mcunet_vww2():
    return _config(
        "1,3,8 | 3,3,16 5,3,16 6,5,16 3,3,16 | 5,7,24 4,5,24 4,3,24 6,7,24 | 6,3,40 6,7,40 4,5,40 5,3,40 5,5,48 3,5,48 "
        "4,3,48 3,5,48 | 4,3,96 5,5,96 4,5,96 4,3,96 5,3,160",
        img_size=144, **_VWW,
    )  # fmt: skip
