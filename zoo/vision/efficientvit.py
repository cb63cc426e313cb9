"""EfficientViT of Microsoft Research Asia: sandwiches of convolutions around cascaded group attention.

Not the EfficientViT of MIT (segmentation). Paper: Liu et al., "EfficientViT: Memory Efficient Vision Transformer with
Cascaded Group Attention", arXiv 2305.07027. Sizes are those of the authors' code (microsoft/Cream);
``checkpoints/convert/efficientvit.py`` reads their weights and timm's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from zoo.config import require_positive
from zoo.layers import CascadedGroupAttention, ConvMlp, Residual, depthwise
from zoo.layers.positions import resize_grid
from zoo.registry import Paper, register_model
from zoo.vision.hierarchical import HierarchicalConfig, MergingModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class EfficientViTConfig(HierarchicalConfig):
    """Options of EfficientViT."""

    num_heads: tuple[int, ...]
    """Heads of each stage."""
    kernels: tuple[int, ...]
    """Sizes of the convolution over the queries of the first, second, ... head."""
    window: int = 7
    """Largest side of an attention window, in features."""
    qk_dim: int = 16
    """Channels of a head's queries and keys."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "window", "qk_dim")
        self.require_one_each("num_heads")


class EfficientViTBlock(nn.Module):
    """Convolution, feed-forward, attention, convolution, feed-forward; all residual.

    The branches start closed, so that a new block is the identity.
    """

    def __init__(self, dim: int, attention: nn.Module, drop_path: float):
        super().__init__()
        self.dw0 = Residual(depthwise(dim, gamma=0.0), drop_path)
        self.ffn0 = Residual(ConvMlp(dim, 2 * dim), drop_path)
        self.mixer = Residual(attention, drop_path)
        self.dw1 = Residual(depthwise(dim, gamma=0.0), drop_path)
        self.ffn1 = Residual(ConvMlp(dim, 2 * dim), drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, H, W) -> (B, dim, H, W)."""
        x = self.mixer(self.ffn0(self.dw0(x)))
        return self.ffn1(self.dw1(x))


class EfficientViT(MergingModel):
    """Stem, stages of ``EfficientViTBlock``, average pooling, batch norm, classifier.

    The tables of attention biases have the size of ``window``, or of the stage's map at ``img_size`` where that is
    smaller; images of other sizes are attended in windows of the same size, and weights whose tables have another size
    are resized when they are loaded.
    """

    fixed_input_size = True
    config: EfficientViTConfig

    def build_block(self, stage: int, index: int, drop_path: float) -> EfficientViTBlock:
        """Blocks of a stage are alike."""
        c, dim = self.config, self.config.dims[stage]
        side = math.ceil(min(c.image_shape) / math.prod(c.strides[: stage + 1]))
        attention = CascadedGroupAttention(dim, c.num_heads[stage], min(c.window, side), c.kernels, c.qk_dim)
        return EfficientViTBlock(dim, attention, drop_path)

    def adapt_tensors(self, tensors: Mapping[str, Tensor], known: Any = None) -> dict[str, Tensor]:
        """The attention biases (num_heads, window^2), by distance in rows and columns, resized to this model's."""
        adapted = dict(tensors)
        for name, module in self.named_modules():
            table = adapted.get(key := f"{name}.attention_biases")
            if isinstance(module, CascadedGroupAttention) and table is not None and table.dim() == 2:
                adapted[key] = resize_grid(table.T[None], (module.window, module.window))[0].T
        return adapted

    def no_weight_decay(self) -> set[str]:
        """The attention biases."""
        return {name for name, _ in self.named_parameters() if name.endswith("attention_biases")}


_register = partial(
    register_model,
    EfficientViT,
    task="image-classification",
    family="efficientvit",
    paper=Paper("EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention", "2305.07027", 2023),
)


@_register()
def efficientvit_nano():
    return EfficientViTConfig(
        img_size=8, in_chans=1, num_classes=10, mean=(0.305,), std=(0.376,), crop_pct=1.0,
        stem_strides=(1, 2), dims=(32, 64), depths=(1, 1), num_heads=(2, 2), kernels=(5, 3), window=3,
    )  # fmt: skip


@_register()
def efficientvit_m0():
    return EfficientViTConfig(dims=(64, 128, 192), depths=(1, 2, 3), num_heads=(4, 4, 4), kernels=(5, 5, 5, 5))


@_register()
def efficientvit_m1():
    return EfficientViTConfig(dims=(128, 144, 192), depths=(1, 2, 3), num_heads=(2, 3, 3), kernels=(7, 5, 3, 3))


@_register()
def efficientvit_m2():
    return EfficientViTConfig(dims=(128, 192, 224), depths=(1, 2, 3), num_heads=(4, 3, 2), kernels=(7, 5, 3, 3))


@_register()
def efficientvit_m3():
    return EfficientViTConfig(dims=(128, 240, 320), depths=(1, 2, 3), num_heads=(4, 3, 4), kernels=(5, 5, 5, 5))


@_register()
def efficientvit_m4():
    return EfficientViTConfig(dims=(128, 256, 384), depths=(1, 2, 3), num_heads=(4, 4, 4), kernels=(7, 5, 3, 3))


@_register()
def efficientvit_m5():
    return EfficientViTConfig(dims=(192, 288, 384), depths=(1, 3, 4), num_heads=(3, 3, 4), kernels=(7, 5, 3, 3))
