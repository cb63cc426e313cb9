"""DiT: transformers over patches of noisy images, conditioned by adaptive norms.

Paper: Peebles and Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748. Sizes S to XL with patches of
two latents are the paper's, over the 4 channels and 32 x 32 latents of images of 256 pixels; their second half of the
outputs, the variances of the authors' discrete diffusion, is not predicted here.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import require_positive
from zoo.generative.adaptive import AdaptiveBlock, AdaptiveHead
from zoo.generative.diffusion import DiffusionConfig, DiffusionModel, waves
from zoo.registry import Paper, register_model

TIME_WAVES, TIME_SCALE = 256, 1000.0  # as the authors' steps count time


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig(DiffusionConfig):
    """Options of DiT."""

    patch_size: int = 2
    """Side of a patch in pixels."""
    dim: int = 96
    """Width."""
    depth: int = 4
    """Blocks."""
    num_heads: int = 4
    """Heads of the attention."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over the width."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "patch_size", "dim", "depth", "num_heads")
        if self.dim % self.num_heads or self.dim % 4:
            raise ValueError(f"num_heads and 4 must divide dim, got {self.num_heads} and {self.dim}")
        if any(side % self.patch_size for side in self.image_shape):
            raise ValueError(f"img_size must be a multiple of patch_size {self.patch_size}, got {self.img_size!r}")


class DiT(DiffusionModel):
    """Patches and fixed positions, blocks, and a linear map back to pixels; time and class are added to one vector."""

    config: DiTConfig

    def __init__(self, config: DiTConfig):
        super().__init__(config)
        c, side = config, config.patch_size
        self.patch_embed = nn.Conv2d(c.in_chans, c.dim, side, side)
        self.time = nn.Sequential(nn.Linear(TIME_WAVES, c.dim), nn.SiLU(), nn.Linear(c.dim, c.dim))
        self.classes = nn.Embedding(c.num_classes + 1, c.dim)  # the last: none
        self.blocks = nn.ModuleList(AdaptiveBlock(c.dim, c.num_heads, c.mlp_ratio) for _ in range(c.depth))
        self.head = AdaptiveHead(c.dim, side * side * c.in_chans)
        height, width = (length // side for length in c.image_shape)
        self.register_buffer("positions", grid_waves(height, width, c.dim), persistent=False)
        nn.init.normal_(self.classes.weight, std=0.02)

    def velocity(self, x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        """As of ``DiffusionModel``."""
        tokens = self.patch_embed(x).flatten(2).mT + self.positions.to(x.dtype)
        c = self.time(waves(TIME_SCALE * t, TIME_WAVES)) + self.classes(classes)
        for block in self.blocks:
            tokens = self._run(block, tokens, c)
        return F.fold(self.head(tokens, c).mT, self.config.image_shape, self.config.patch_size,
                      stride=self.config.patch_size)  # fmt: skip


def grid_waves(height: int, width: int, dim: int) -> Tensor:
    """Fixed vectors (height * width, dim) of the places of a grid: half of the row, half of the column."""
    rows, columns = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return torch.cat([waves(rows.flatten(), dim // 2), waves(columns.flatten(), dim // 2)], 1)


_register = partial(
    register_model, DiT, task="image-diffusion", family="dit",
    paper=Paper("Scalable Diffusion Models with Transformers", "2212.09748", 2022),
)  # fmt: skip


def _latents(dim: int, depth: int, num_heads: int) -> DiTConfig:
    return DiTConfig(
        img_size=32, in_chans=4, num_classes=1000, dim=dim, depth=depth, num_heads=num_heads, mean=(0.0,) * 4,
        std=(1.0,) * 4,
    )  # fmt: skip


@_register()
def dit_nano():
    return DiTConfig(mean=(0.305,), std=(0.376,))


@_register()
def dit_s_2():
    return _latents(384, 12, 6)


@_register()
def dit_b_2():
    return _latents(768, 12, 12)


@_register()
def dit_l_2():
    return _latents(1024, 24, 16)


@_register()
def dit_xl_2():
    return _latents(1152, 28, 16)
