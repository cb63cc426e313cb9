"""S4 over pixel sequences: an image is read pixel by pixel, row after row, without patches, positions or convolutions.

Paper: Gu et al., "Efficiently Modeling Long Sequences with Structured State Spaces", arXiv 2111.00396. The sizes
``s4_pixel_lra_*`` are those of the authors' current configurations for the image tasks of the Long Range Arena
(state-spaces/s4, configs/experiment/lra): sequences of 1024 grey pixels, of 16384 for Path-X; ``s4_pixel_scifar`` is
that for sequential CIFAR-10 in colour. Where the house differs: dropout chooses each number by itself, where the
authors drop a channel at all pixels.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from torch import nn

from zoo.config import require_positive
from zoo.layers.ssm import S4Block
from zoo.registry import Paper, register_model
from zoo.vision.pixels import PixelConfig, PixelModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class S4PixelConfig(PixelConfig):
    """Options of S4 over pixels."""

    d_state: int = 64
    """State size N of a channel."""
    num_ssm: int = 1
    """Distinct state matrices, which the channels take in turn."""
    dt_min: float = 0.001
    """Smallest initial step size."""
    dt_max: float = 0.1
    """Largest initial step size."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "d_state", "num_ssm")


class S4Pixel(PixelModel):
    """A linear map of each pixel, S4 blocks, and a classifier of the mean over the pixels."""

    config: S4PixelConfig

    def build_block(self, drop_path: float) -> nn.Module:
        """Norm and S4."""
        c = self.config
        return S4Block(
            c.dim, d_state=c.d_state, num_ssm=c.num_ssm, dt_min=c.dt_min, dt_max=c.dt_max,
            bidirectional=c.bidirectional, norm=self.norm_layer, prenorm=c.prenorm, drop_rate=c.mixer_drop_rate,
            drop_path=drop_path,
        )  # fmt: skip


_register = partial(
    register_model,
    S4Pixel,
    task="image-classification",
    family="s4_pixel",
    paper=Paper("Efficiently Modeling Long Sequences with Structured State Spaces", "2111.00396", 2021),
)


@_register()
def s4_pixel_nano():
    return S4PixelConfig(
        img_size=8, num_classes=10, dim=64, depth=4, d_state=16, num_ssm=2, dt_min=0.01, mean=(0.305,), std=(0.376,)
    )


@_register()
def s4_pixel_scifar():
    return S4PixelConfig(
        in_chans=3, num_classes=10, dim=512, num_ssm=2, mixer_drop_rate=0.1, prenorm=False, norm="layer",
        mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.243, 0.261),
    )  # fmt: skip


@_register()
def s4_pixel_lra_image():
    return S4PixelConfig(
        num_classes=10, dim=512, mixer_drop_rate=0.1, prenorm=False, mean=(122.6 / 255,), std=(61.0 / 255,)
    )


@_register()
def s4_pixel_lra_pathfinder():
    return S4PixelConfig(num_classes=2, dim=256, num_ssm=256)


@_register()
def s4_pixel_lra_pathx():
    return S4PixelConfig(img_size=128, num_classes=2, dim=256, num_ssm=256, dt_min=0.0001)
