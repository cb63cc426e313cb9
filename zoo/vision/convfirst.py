"""ConvFirst: residual blocks that convolve in groups of eight channels before they widen.

Paper: Lavin, "On the Efficiency of Convolutional Neural Networks", arXiv 2404.03617. The blocks are those of the
author's code (andravin/spio); neither the stages of the paper's networks nor weights are published, so these sizes are
ours: wide maps early by ``ConvFirst``, small ones late by ``MBConv``, with the expansions that the author's script
profiles. ``fuse_blocks`` is the paper's block fusion, ``zoo bench gap`` draws its plots.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from torch import nn

from zoo.config import require_positive
from zoo.layers.conv import ConvFirst, MBConv, SiLUConvNorm
from zoo.registry import Paper, register_model
from zoo.vision.hierarchical import HierarchicalConfig, HierarchicalModel

BLOCKS = {"conv_first": ConvFirst, "mbconv": MBConv}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvFirstConfig(HierarchicalConfig):
    """Options of ConvFirst. ``depths`` are the blocks of each stage, without the block of stride 2 that begins all but
    the first."""

    kinds: tuple[str, ...]
    """Blocks of each stage: "conv_first" or "mbconv"."""
    expand: tuple[int, ...]
    """Width inside the blocks of each stage over their input's."""
    kernel_size: int = 3
    """Odd side of the grouped kernels."""
    group_width: int = 8
    """Channels that a grouped convolution mixes; 1 is depthwise."""
    stem_strides: tuple[int, ...] = (2, 2)

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "group_width")
        self.require_one_each("expand")
        if len(self.kinds) != len(self.dims) or not set(self.kinds) <= BLOCKS.keys():
            raise ValueError(f"kinds must name one of {', '.join(BLOCKS)} a stage, got {self.kinds}")
        halvings = 2 ** (len(self.stem_strides) - 1)
        if self.dims[0] % halvings or any(dim % self.group_width for dim in self.dims):
            raise ValueError(
                f"dims must be divisible by group_width {self.group_width}, the first also by {halvings} for the stem, "
                f"got {self.dims}"
            )
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {self.kernel_size}")


class ConvFirstNet(HierarchicalModel):
    """Stem of 3 x 3 convolutions of doubling width, stages of ``ConvFirst`` and ``MBConv``, average pooling,
    classifier."""

    config: ConvFirstConfig

    def __init__(self, config: ConvFirstConfig):
        super().__init__(config)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def build_downsample(self, stage: int) -> nn.Module:
        """The stem, or a block of stride 2."""
        c = self.config
        if stage:
            return self._block(stage, c.dims[stage - 1], stride=2)
        widths = [c.in_chans, *(c.dims[0] >> left for left in reversed(range(len(c.stem_strides))))]
        return nn.Sequential(
            *(SiLUConvNorm(widths[i], widths[i + 1], 3, stride) for i, stride in enumerate(c.stem_strides))
        )

    def build_block(self, stage: int, index: int, drop_path: float) -> nn.Module:
        """A block of the stage's kind."""
        return self._block(stage, self.config.dims[stage], drop_path=drop_path)

    def _block(self, stage: int, in_dim: int, stride: int = 1, drop_path: float = 0.0) -> nn.Module:
        c = self.config
        build = BLOCKS[c.kinds[stage]]
        return build(in_dim, c.dims[stage], c.expand[stage], c.kernel_size, stride, c.group_width, drop_path)


_register = partial(
    register_model, ConvFirstNet, task="image-classification", family="convfirst",
    paper=Paper("On the Efficiency of Convolutional Neural Networks", "2404.03617", 2024),
)  # fmt: skip
_sizes = partial(
    ConvFirstConfig, kinds=("conv_first", "conv_first", "mbconv", "mbconv"), expand=(6, 6, 4, 4), img_size=256
)


@_register()
def convfirst_nano():
    return ConvFirstConfig(
        img_size=8, in_chans=1, num_classes=10, mean=(0.305,), std=(0.376,), crop_pct=1.0, stem_strides=(1,),
        dims=(32, 64), depths=(2, 1), kinds=("conv_first", "mbconv"), expand=(4, 4),
    )  # fmt: skip


@_register()
def convfirst_tiny():
    return _sizes(dims=(32, 64, 128, 256), depths=(1, 1, 4, 2))


@_register()
def convfirst_small():
    return _sizes(dims=(48, 96, 192, 384), depths=(2, 2, 6, 3))


@_register()
def convfirst_base():
    return _sizes(dims=(64, 128, 256, 512), depths=(3, 3, 9, 4))
