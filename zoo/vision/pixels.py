"""What classifiers of pixel sequences share: the linear map of each pixel, residual blocks, norms, pooling."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from zoo.config import require_positive
from zoo.layers import PatchEmbed
from zoo.layers.sequence_block import SequenceNorm
from zoo.vision.base import VisionConfig, VisionModel, drop_path_rates

NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": SequenceNorm, "layer": nn.LayerNorm}
POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {  # pixels (B, N, dim) -> (B, dim)
    "avg": lambda x: x.mean(1),
    "last": lambda x: x[:, -1],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelConfig(VisionConfig):
    """Options of every classifier of pixel sequences."""

    img_size: int | tuple[int, int] = 32
    in_chans: int = 1
    dim: int
    """Model width."""
    depth: int = 6
    """Blocks."""
    bidirectional: bool = True
    """The mixers also read from the end."""
    mixer_drop_rate: float = 0.0
    """Dropout within and after the mixer."""
    prenorm: bool = True
    """A norm before the mixer and after the last block; False: after each sum."""
    norm: str = "batch"
    """The norms: "batch", over images and pixels, or "layer"."""
    global_pool: str = "avg"
    """What is classified: the mean over the pixels, "avg", or the "last" pixel."""
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    crop_pct: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "dim", "depth")
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}")
        if self.global_pool not in POOLINGS:
            raise ValueError(
                f"a sequence of pixels is pooled by their mean ('avg') or its last ('last'), not {self.global_pool!r}"
            )

    @property
    def num_pixels(self) -> int:
        """Of an image: the length of the sequence."""
        height, width = self.image_shape
        return height * width


class PixelModel(VisionModel):
    """A linear map of each pixel, blocks that mix them in raster order, and a classifier of the pooled pixels."""

    config: PixelConfig

    def __init__(self, config: PixelConfig):
        super().__init__(config)
        self.patch_embed = PatchEmbed(config.img_size, 1, config.in_chans, config.dim)
        self.blocks = nn.ModuleList(map(self.build_block, drop_path_rates(config.drop_path_rate, config.depth)))
        self.norm = self.norm_layer(config.dim) if config.prenorm else nn.Identity()
        self.head = self.build_head()

    @abstractmethod
    def build_block(self, drop_path: float) -> nn.Module:
        """A block (B, N, dim) -> (B, N, dim) that is left out at the rate ``drop_path``."""

    @property
    def norm_layer(self) -> Callable[[int], nn.Module]:
        """dim -> a norm of the kind that the configuration names."""
        return NORMS[self.config.norm]

    def layer_list(self) -> tuple[str, nn.ModuleList]:
        """The blocks."""
        return "blocks", self.blocks

    def forward_embed(self, x: Tensor) -> Tensor:
        """Each pixel by itself, in raster order."""
        return self.patch_embed(x)

    def forward_norm(self, x: Tensor) -> Tensor:
        """The final norm; nothing where the blocks end in one."""
        return self.norm(x)

    def pool(self, x: Tensor) -> Tensor:
        """What ``global_pool`` names."""
        return POOLINGS[self.config.global_pool](x)

    def patch_tokens(self, x: Tensor) -> Tensor:
        """All tokens."""
        return x

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier for ``num_classes``, none for 0; ``global_pool`` None keeps the present pooling.

        Raises:
            ValueError: for an unknown pooling.
        """
        changes = {} if global_pool is None else {"global_pool": global_pool}
        self._replace_head(num_classes=num_classes, **changes)

    def no_weight_decay(self) -> set[str]:
        """What the mixers say, and norms."""
        return super().no_weight_decay() - {"pos_embed", "cls_token"}
