"""Vision Mamba (Vim): bidirectional Mamba blocks over image patches, class token in the middle.

Paper: Zhu et al., arXiv 2401.09417. Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import torch
from torch import Tensor, nn

from zoo.config import require_positive
from zoo.kernels.dispatch import compute_dtype
from zoo.layers import BiMamba, DropPath, PatchEmbed, RMSNorm
from zoo.registry import Paper, register_model
from zoo.vision.base import drop_path_rates
from zoo.vision.tokens import TokenConfig, TokenModel

torch.fx.wrap("compute_dtype")  # symbolic tracers have no dtype yet


@dataclasses.dataclass(frozen=True, kw_only=True)
class VimConfig(TokenConfig):
    """Options of Vim, those of the ``BiMamba`` mixer among them."""

    patch_size: int = 16
    """Side of a patch in pixels."""
    stride: int | None = None
    """Pixels between patches, patch_size when None."""
    dim: int
    """Model width."""
    depth: int = 24
    """Blocks."""
    d_state: int = 16
    """State size of a channel."""
    d_conv: int = 4
    """Taps of the causal convolutions."""
    expand: int = 2
    """Inner width over dim."""
    norm_eps: float = 1e-5
    """Added to the mean square in the norms."""
    crop_pct: float = 0.875

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "patch_size", "stride", "dim", "depth", "d_state", "d_conv", "expand")


class VimBlock(nn.Module):
    """x + drop_path(mixer(norm(x)))."""

    def __init__(self, config: VimConfig, drop_path: float):
        super().__init__()
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.mixer = BiMamba(config.dim, config.d_state, config.d_conv, config.expand)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, dim) -> (B, N, dim)."""
        return x + self.drop_path(self.mixer(self.norm(x)))


class Vim(TokenModel):
    """Patches, a class token at position N // 2, position table, blocks, norm; the class token is classified.

    The residual stream is float32 also in a low-precision model.
    """

    config: VimConfig
    final_norm = "norm_f"

    def __init__(self, config: VimConfig):
        super().__init__(config)
        self.patch_embed = PatchEmbed(config.img_size, config.patch_size, config.in_chans, config.dim, config.stride)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 1, config.dim))
        rates = drop_path_rates(config.drop_path_rate, config.depth)
        self.layers = nn.ModuleList(VimBlock(config, rate) for rate in rates)
        self.norm_f = RMSNorm(config.dim, config.norm_eps)
        self.head = self.build_head()
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """The authors' initial values; layers initialise the rest."""
        fan_in = self.patch_embed.proj.weight[0].numel()
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=math.sqrt(1 / fan_in) / 0.87962566103423978)
        nn.init.zeros_(self.patch_embed.proj.bias)  # type: ignore[arg-type]
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.layers.modules():
            if isinstance(module, BiMamba):
                nn.init.kaiming_uniform_(module.out_proj.weight, a=math.sqrt(5))
                module.out_proj.weight /= math.sqrt(len(self.layers))

    @staticmethod
    def token_place(num_patches: int) -> int:
        """In the middle."""
        return num_patches // 2

    def layer_list(self) -> tuple[str, nn.ModuleList]:
        """The Vim blocks."""
        return "layers", self.layers

    def forward_embed(self, x: Tensor) -> Tensor:
        """Patches with the class token between the two halves, plus positions; at least float32."""
        x = super().forward_embed(x)
        return x.to(compute_dtype(x))

    def forward_norm(self, x: Tensor) -> Tensor:
        """Final RMSNorm."""
        return self.norm_f(x)


_register = partial(
    register_model,
    Vim,
    task="image-classification",
    family="vim",
    paper=Paper(
        "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model",
        "2401.09417",
        2024,
    ),
)


@_register()
def vim_nano():
    return VimConfig(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, dim=64, depth=6, mean=(0.305,), std=(0.376,), crop_pct=1.0
    )


@_register()
def vim_tiny():
    return VimConfig(dim=192)


@_register()
def vim_small():
    return VimConfig(dim=384)


@_register()
def vim_base():
    return VimConfig(dim=768)
