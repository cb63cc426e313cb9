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
from zoo.layers.mlp import QuickGELU
from zoo.registry import Paper, register_model
from zoo.vision.base import drop_path_rates
from zoo.vision.tokens import POOLINGS, TokenConfig, TokenModel

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig(TokenConfig):
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
    fc_norm: bool | None = None
    """The final norm follows the pooling instead of preceding it; None: where patches are pooled, as in timm."""
    pre_norm: bool = False
    """A norm stands before the first block, and patches have no bias, as in CLIP."""
    activation: str = "gelu"
    """Of the MLP: "gelu" or "quick_gelu", as in CLIP."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "patch_size", "dim", "depth", "num_heads")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {tuple(ACTIVATIONS)}, got {self.activation!r}")

    @property
    def norm_after_pooling(self) -> bool:
        """Where the final norm is."""
        return self.global_pool in POOLINGS if self.fc_norm is None else self.fc_norm


class ViTBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), each with stochastic depth."""

    def __init__(self, config: ViTConfig, drop_path: float):
        super().__init__()
        c = config
        self.norm1 = nn.LayerNorm(c.dim, c.norm_eps)
        self.attn = Attention(c.dim, c.num_heads, c.qkv_bias, c.proj_drop_rate)
        self.norm2 = nn.LayerNorm(c.dim, c.norm_eps)
        self.mlp = Mlp(c.dim, int(c.dim * c.mlp_ratio), c.proj_drop_rate, ACTIVATIONS[c.activation])
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, dim) -> (B, N, dim)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ViT(TokenModel):
    """Class token, patches, position table, blocks, norm; the class token, or a pooling of patches, is classified."""

    config: ViTConfig

    def __init__(self, config: ViTConfig):
        super().__init__(config)
        c = config
        self.patch_embed = PatchEmbed(c.img_size, c.patch_size, c.in_chans, c.dim, bias=not c.pre_norm)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 1, config.dim))
        self.norm_pre = nn.LayerNorm(c.dim, c.norm_eps) if c.pre_norm else nn.Identity()
        rates = drop_path_rates(config.drop_path_rate, config.depth)
        self.blocks = nn.ModuleList(self.build_block(index, rate) for index, rate in enumerate(rates))
        norms = nn.LayerNorm(config.dim, config.norm_eps), nn.Identity()
        self.fc_norm, self.norm = norms if config.norm_after_pooling else norms[::-1]
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

    @staticmethod
    def token_place(num_patches: int) -> int:
        """Before all patches."""
        return 0

    def forward_embed(self, x: Tensor) -> Tensor:
        """Class token and patches, plus positions, and the norm that may follow."""
        return self.norm_pre(super().forward_embed(x))

    def forward_norm(self, x: Tensor) -> Tensor:
        """Final layer norm."""
        return self.norm(x)

    def pool(self, x: Tensor) -> Tensor:
        """What ``global_pool`` names, (B, dim), and the norm that may follow it."""
        return self.fc_norm(super().pool(x))

    def adapt_tensors(self, tensors: Mapping[str, Tensor], known: Any = None) -> dict[str, Tensor]:
        """As of every model over patches.

        Raises:
            ValueError: for tensors whose last norm is on the other side of the pooling.
        """
        names, after = ("norm.weight", "fc_norm.weight"), self.config.norm_after_pooling
        if names[after] not in tensors and names[not after] in tensors:
            here, there = ("after", "before") if after else ("before", "after")
            raise ValueError(
                f"the last norm of these weights is {there} the pooling, and with global_pool="
                f"{self.config.global_pool!r} that of the model is {here} it: create it with fc_norm={not after}"
            )
        return super().adapt_tensors(tensors, known)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier for ``num_classes``, none for 0; ``global_pool`` None keeps the present pooling, and the
        norm stays where it is."""
        changes = {} if global_pool is None else {"global_pool": global_pool, "fc_norm": self.config.norm_after_pooling}
        self._replace_head(num_classes=num_classes, **changes)


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
