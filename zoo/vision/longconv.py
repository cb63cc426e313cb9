"""LongConv over pixel sequences: an image is read pixel by pixel, every block convolves it with as many learned taps.

Paper: Fu et al., "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", arXiv 2302.06646. Sizes are those
of the authors' configurations (HazyResearch/safari, configs/experiment): ``longconv_pixel_scifar`` for sequential
CIFAR-10 in colour and ``longconv_pixel_lra_*`` for the image tasks of the Long Range Arena (arXiv 2011.04006), of 1024
grey pixels, and 16384 for Path-X. Of Path-256, 65536 pixels, no configuration is published; ``img_size=256`` makes any
of them read its images. Where the house differs: dropout chooses each number by itself, where the authors drop a
channel at all pixels of CIFAR-10.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from torch import nn

from zoo.config import require_positive
from zoo.layers.sequence_block import SequenceBlock
from zoo.registry import Paper, register_model
from zoo.taps import ConvolutionsConfig
from zoo.vision.pixels import PixelConfig, PixelModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongConvPixelConfig(ConvolutionsConfig, PixelConfig):
    """Options of LongConv over pixels."""

    kernel_length: int | None = None
    """Taps of each convolution and direction; None for one a pixel."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "kernel_length", "num_convs")


class LongConvPixel(PixelModel):
    """A linear map of each pixel, long convolutions, and a classifier of the pooled pixels."""

    config: LongConvPixelConfig

    def build_block(self, drop_path: float) -> nn.Module:
        """Norm and long convolutions."""
        c = self.config
        mixer = c.build_mixer(c.dim, c.kernel_length or c.num_pixels, c.bidirectional, c.mixer_drop_rate)
        return SequenceBlock(
            c.dim, mixer, norm=self.norm_layer, prenorm=c.prenorm, drop_rate=c.mixer_drop_rate, drop_path=drop_path
        )


_register = partial(
    register_model,
    LongConvPixel,
    task="image-classification",
    family="longconv_pixel",
    paper=Paper("Simple Hardware-Efficient Long Convolutions for Sequence Modeling", "2302.06646", 2023),
)
_cifar = partial(
    LongConvPixelConfig, num_classes=10, dim=512, bidirectional=False, mixer_drop_rate=0.1, prenorm=False, norm="layer"
)
_pathfinder = partial(LongConvPixelConfig, num_classes=2, dim=256, lam=0.001, kernel_dropout=0.3)


@_register()
def longconv_pixel_nano():
    return LongConvPixelConfig(
        img_size=8, num_classes=10, dim=64, depth=4, kernel_length=64, kernel_dropout=0.0, kernel_init="double_exp",
        mean=(0.305,), std=(0.376,),
    )  # fmt: skip


@_register()
def longconv_pixel_scifar():
    return _cifar(in_chans=3, lam=0.001, mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.243, 0.261))


@_register()
def longconv_pixel_lra_image():
    return _cifar(mean=(122.6 / 255,), std=(61.0 / 255,))


@_register()
def longconv_pixel_lra_pathfinder():
    return _pathfinder(global_pool="last")


@_register()
def longconv_pixel_lra_pathx():
    return _pathfinder(img_size=128, kernel_lr=5e-4)
