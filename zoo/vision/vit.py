"""Vision transformer (ViT), the measuring stick of the vision models.

Paper: Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929. Parameter names are those of timm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.config import require_positive
from zoo.layers import Attention, DropPath, Mlp, PatchEmbed
from zoo.layers.embed import patch_grid
from zoo.layers.positions import resize_positions
from zoo.registry import Paper, register_model
from zoo.vision.base import VisionConfig, VisionModel, drop_path_rates


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig(VisionConfig):
    """Options of the vision transformer."""

    patch_size: int = 16
    """Side of a patch in pixels."""
    dim: int
    """Model width."""
    depth: int = 12
    """Blocks."""
    num_heads: int
    """Heads of the attention."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over dim."""
    qkv_bias: bool = True
    """Queries, keys and values have biases."""
    proj_drop_rate: float = 0.0
    """Dropout after the projections of attention and MLP."""
    norm_eps: float = 1e-6
    """Added to the variance in the layer norms."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "patch_size", "dim", "depth", "num_heads")


class ViTBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), each with stochastic depth."""

    def __init__(self, config: ViTConfig, drop_path: float):
        super().__init__()
        c = config
        self.norm1 = nn.LayerNorm(c.dim, c.norm_eps)
        self.attn = Attention(c.dim, c.num_heads, c.qkv_bias, c.proj_drop_rate)
        self.norm2 = nn.LayerNorm(c.dim, c.norm_eps)
        self.mlp = Mlp(c.dim, int(c.dim * c.mlp_ratio), c.proj_drop_rate)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, dim) -> (B, N, dim)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ViT(VisionModel):
    """Class token, patches, position table, blocks, norm; the class token is classified."""

    config: ViTConfig

    def __init__(self, config: ViTConfig):
        super().__init__(config)
        self.patch_embed = PatchEmbed(config.img_size, config.patch_size, config.in_chans, config.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 1, config.dim))
        rates = drop_path_rates(config.drop_path_rate, config.depth)
        self.blocks = nn.ModuleList(self.build_block(index, rate) for index, rate in enumerate(rates))
        self.norm = nn.LayerNorm(config.dim, config.norm_eps)
        self.head = self.build_head()
        self.init_weights()

    def build_block(self, index: int, drop_path: float) -> ViTBlock:
        """Blocks are alike."""
        return ViTBlock(self.config, drop_path)

    def init_weights(self) -> None:
        """Truncated normal of 0.02 for the linear layers and positions, zero biases."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def layer_list(self) -> tuple[str, nn.ModuleList]:
        """The transformer blocks."""
        return "blocks", self.blocks

    def forward_embed(self, x: Tensor) -> Tensor:
        """The class token, then the patches, plus positions."""
        x = self.patch_embed(x)
        return torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed

    def forward_norm(self, x: Tensor) -> Tensor:
        """Final layer norm."""
        return self.norm(x)

    def adapt_tensors(self, tensors: Mapping[str, Tensor], known: Any = None) -> dict[str, Tensor]:
        """The position table resized to the grid of this model's patches, the row of the class token apart."""
        if (table := tensors.get("pos_embed")) is None:
            return dict(tensors)
        source = None if known is None else patch_grid(known.image_shape, known.patch_size)
        table = resize_positions(table, self.patch_embed.grid_size, lambda patches: 0, source)
        return {**tensors, "pos_embed": table}

    def pool(self, x: Tensor) -> Tensor:
        """The class token."""
        return x[:, 0]

    def patch_tokens(self, x: Tensor) -> Tensor:
        """All tokens but the first."""
        return x[:, 1:]


_register = partial(
    register_model,
    ViT,
    task="image-classification",
    family="vit",
    paper=Paper("An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", "2010.11929", 2021),
)


@_register()
def vit_nano():
    return ViTConfig(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, dim=64, depth=6, num_heads=4, mean=(0.305,), std=(0.376,),
        crop_pct=1.0,
    )  # fmt: skip


@_register()
def vit_tiny_patch16_224():
    return ViTConfig(dim=192, num_heads=3)


@_register()
def vit_small_patch16_224():
    return ViTConfig(dim=384, num_heads=6)


@_register()
def vit_base_patch16_224():
    return ViTConfig(dim=768, num_heads=12)
