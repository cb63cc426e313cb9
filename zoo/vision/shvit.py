"""SHViT: convolutional stages whose later ones attend with a single head over a part of the channels.

Paper: Yun and Ro, "SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design", arXiv 2401.16456. Sizes
are those of the authors' code (ysj9909/SHViT); ``checkpoints/convert/efficientvit.py`` reads their weights and timm's.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from torch import Tensor, nn

from zoo.config import require_positive
from zoo.layers import ConvMlp, Residual, SingleHeadAttention, depthwise
from zoo.registry import Paper, register_model
from zoo.vision.hierarchical import HierarchicalConfig, MergingModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class SHViTConfig(HierarchicalConfig):
    """Options of SHViT."""

    partial_dims: tuple[int, ...]
    """Channels of each stage that attend, 0 for a stage without attention."""
    qk_dim: int = 16
    """Channels of queries and keys."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "qk_dim")
        self.require_one_each("partial_dims", least=0)


class SHViTBlock(nn.Module):
    """Depthwise convolution, single-head attention (left out for ``partial_dim`` 0), feed-forward layer; all residual.

    The branches start closed, so that a new block is the identity.
    """

    def __init__(self, dim: int, partial_dim: int, qk_dim: int, drop_path: float):
        super().__init__()
        self.conv = Residual(depthwise(dim, gamma=0.0), drop_path)
        self.mixer = (
            Residual(SingleHeadAttention(dim, partial_dim, qk_dim), drop_path) if partial_dim else nn.Identity()
        )
        self.ffn = Residual(ConvMlp(dim, 2 * dim), drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, H, W) -> (B, dim, H, W)."""
        return self.ffn(self.mixer(self.conv(x)))


class SHViT(MergingModel):
    """Stem, stages of ``SHViTBlock``, average pooling, batch norm, classifier."""

    config: SHViTConfig

    def build_block(self, stage: int, index: int, drop_path: float) -> SHViTBlock:
        """Blocks of a stage are alike."""
        c = self.config
        return SHViTBlock(c.dims[stage], c.partial_dims[stage], c.qk_dim, drop_path)


_register = partial(
    register_model,
    SHViT,
    task="image-classification",
    family="shvit",
    paper=Paper("SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design", "2401.16456", 2024),
)


@_register()
def shvit_nano():
    return SHViTConfig(
        img_size=8, in_chans=1, num_classes=10, mean=(0.305,), std=(0.376,), crop_pct=1.0,
        stem_strides=(1, 1), dims=(48, 96), depths=(1, 1), partial_dims=(0, 24),
    )  # fmt: skip


@_register()
def shvit_s1():
    return SHViTConfig(dims=(128, 224, 320), depths=(2, 4, 5), partial_dims=(0, 48, 68))


@_register()
def shvit_s2():
    return SHViTConfig(dims=(128, 308, 448), depths=(2, 4, 5), partial_dims=(0, 66, 96))


@_register()
def shvit_s3():
    return SHViTConfig(dims=(192, 352, 448), depths=(3, 5, 5), partial_dims=(0, 75, 96))


@_register()
def shvit_s4():
    return SHViTConfig(img_size=256, dims=(224, 336, 448), depths=(4, 7, 6), partial_dims=(0, 72, 96))
