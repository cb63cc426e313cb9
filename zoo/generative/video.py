r"""A diffusion transformer of clips: attention within a frame, then attention over time at a place, block after block.

Paper: Zheng et al., "Open-Sora: Democratizing Efficient Video Production for All", arXiv 2412.20404 (its spatial and
temporal blocks, STDiT); here conditioned by a class in place of a text, with fixed vectors of places and times in place
of rotations; the sizes are ours.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import require_positive
from zoo.generative.adaptive import AdaptiveBlock, AdaptiveHead
from zoo.generative.diffusion import DiffusionModel, waves
from zoo.generative.dit import TIME_SCALE, TIME_WAVES, DiTConfig, grid_waves
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoDiTConfig(DiTConfig):
    """Options of a diffusion transformer of clips."""

    frames: int = 8
    """Of a clip."""
    img_size: int | tuple[int, int] = 16
    """Side, or (height, width), in pixels."""
    patch_size: int = 4
    """Side of a patch in pixels."""
    dim: int = 64
    """Width."""
    depth: int = 3
    """Pairs of a block within frames and a block over time."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "frames")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of a clip: (channels, frames, height, width)."""
        return (self.in_chans, self.frames, *self.image_shape)


class VideoDiT(DiffusionModel):
    r"""Of tokens x at frames f and places p, block after block

    .. math:: x_{f \cdot} = \mathrm{spatial}(x_{f \cdot}, c), \quad x_{\cdot p} = \mathrm{temporal}(x_{\cdot p}, c)

    with time and class added to one vector c.

    Attributes:
        spatial, temporal: blocks, which read (B * frames, places, dim) and (B * places, frames, dim).
    """

    config: VideoDiTConfig
    unit = "clips"

    def __init__(self, config: VideoDiTConfig):
        super().__init__(config)
        c, side = config, config.patch_size
        self.patch_embed = nn.Conv2d(c.in_chans, c.dim, side, side)
        self.time = nn.Sequential(nn.Linear(TIME_WAVES, c.dim), nn.SiLU(), nn.Linear(c.dim, c.dim))
        self.classes = nn.Embedding(c.num_classes + 1, c.dim)  # the last: none
        self.spatial, self.temporal = (
            nn.ModuleList(AdaptiveBlock(c.dim, c.num_heads, c.mlp_ratio) for _ in range(c.depth)) for _ in range(2)
        )
        self.head = AdaptiveHead(c.dim, side * side * c.in_chans)
        height, width = (length // side for length in c.image_shape)
        places = grid_waves(height, width, c.dim) + waves(torch.arange(float(c.frames)), c.dim)[:, None]
        self.register_buffer("positions", places, persistent=False)  # (frames, places, dim)
        nn.init.normal_(self.classes.weight, std=0.02)

    def velocity(self, x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        """x (B, C, frames, H, W), t (B,), classes (B,) -> (B, C, frames, H, W)."""
        config, clips = self.config, len(x)
        tokens = self.patch_embed(x.transpose(1, 2).flatten(0, 1)).flatten(2).mT
        tokens = tokens.unflatten(0, (clips, config.frames)) + self.positions.to(x.dtype)  # (B, frames, places, dim)
        c = self.time(waves(TIME_SCALE * t, TIME_WAVES)) + self.classes(classes)
        places = tokens.shape[2]
        of_frames, of_places = (c[:, None].expand(-1, n, -1).flatten(0, 1) for n in (config.frames, places))
        for spatial, temporal in zip(self.spatial, self.temporal, strict=True):
            rows = self._run(spatial, tokens.flatten(0, 1), of_frames)
            rows = rows.unflatten(0, (clips, config.frames)).transpose(1, 2).flatten(0, 1)
            rows = self._run(temporal, rows, of_places)
            tokens = rows.unflatten(0, (clips, places)).transpose(1, 2)
        made = self.head(tokens.flatten(1, 2), c).unflatten(1, (config.frames, places)).flatten(0, 1)
        side = config.patch_size
        frames = F.fold(made.mT, config.image_shape, side, stride=side)
        return frames.unflatten(0, (clips, config.frames)).transpose(1, 2)


_register = partial(
    register_model, VideoDiT, task="video-diffusion", family="video_dit",
    paper=Paper("Open-Sora: Democratizing Efficient Video Production for All", "2412.20404", 2024),
)  # fmt: skip


@_register()
def video_dit_nano():
    return VideoDiTConfig(mean=(0.106,), std=(0.251,))
