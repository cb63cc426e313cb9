"""S4 over pixel sequences: an image is read pixel by pixel, row after row, without patches, positions or convolutions.

Paper: Gu et al., "Efficiently Modeling Long Sequences with Structured State Spaces", arXiv 2111.00396. The sizes
``s4_pixel_lra_*`` are those of the authors' current configurations for the image tasks of the Long Range Arena
(state-spaces/s4, configs/experiment/lra): sequences of 1024 grey pixels, of 16384 for Path-X. Where the house differs:
dropout chooses each number by itself, where the authors drop a channel at all pixels.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from torch import Tensor, nn

from zoo.config import require_positive
from zoo.layers import PatchEmbed
from zoo.layers.ssm import S4Block, SequenceNorm
from zoo.registry import Paper, register_model
from zoo.vision.base import VisionConfig, VisionModel, drop_path_rates


@dataclasses.dataclass(frozen=True, kw_only=True)
class S4PixelConfig(VisionConfig):
    """Options of S4 over pixels."""

    img_size: int | tuple[int, int] = 32
    in_chans: int = 1
    dim: int
    """Model width."""
    depth: int = 6
    """Blocks."""
    d_state: int = 64
    """State size N of a channel."""
    num_ssm: int = 1
    """Distinct state matrices, which the channels take in turn."""
    dt_min: float = 0.001
    """Smallest initial step size."""
    dt_max: float = 0.1
    """Largest initial step size."""
    bidirectional: bool = True
    """The mixers also read from the end."""
    mixer_drop_rate: float = 0.0
    """Dropout within and after the mixer."""
    prenorm: bool = True
    """Batch norm before the mixer and after the last block; False: after each sum."""
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    crop_pct: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "dim", "depth", "d_state", "num_ssm")


class S4Pixel(VisionModel):
    """A linear map of each pixel, S4 blocks, and a classifier of the mean over the pixels."""

    config: S4PixelConfig

    def __init__(self, config: S4PixelConfig):
        super().__init__(config)
        self.patch_embed = PatchEmbed(config.img_size, 1, config.in_chans, config.dim)
        rates = drop_path_rates(config.drop_path_rate, config.depth)
        c = config
        self.blocks = nn.ModuleList(
            S4Block(
                c.dim,
                d_state=c.d_state,
                num_ssm=c.num_ssm,
                dt_min=c.dt_min,
                dt_max=c.dt_max,
                bidirectional=c.bidirectional,
                prenorm=c.prenorm,
                drop_rate=c.mixer_drop_rate,
                drop_path=rate,
            )
            for rate in rates
        )
        self.norm = SequenceNorm(c.dim) if c.prenorm else nn.Identity()
        self.head = self.build_head()

    def layer_list(self) -> tuple[str, nn.ModuleList]:
        """The S4 blocks."""
        return "blocks", self.blocks

    def forward_embed(self, x: Tensor) -> Tensor:
        """Each pixel by itself, in raster order."""
        return self.patch_embed(x)

    def forward_norm(self, x: Tensor) -> Tensor:
        """Final batch norm; nothing where the blocks end in one."""
        return self.norm(x)

    def pool(self, x: Tensor) -> Tensor:
        """Mean over the pixels."""
        return x.mean(1)

    def patch_tokens(self, x: Tensor) -> Tensor:
        """All tokens."""
        return x

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier for ``num_classes``, none for 0; the mean over the pixels stays.

        Raises:
            ValueError: for another pooling than "avg".
        """
        if global_pool not in (None, "avg"):
            raise ValueError(f"{type(self).__name__} pools by the mean over the pixels ('avg'), not {global_pool!r}")
        self._replace_head(num_classes=num_classes)

    def no_weight_decay(self) -> set[str]:
        """The dynamics of the state spaces, and batch norms."""
        return super().no_weight_decay() - {"pos_embed", "cls_token"}


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
