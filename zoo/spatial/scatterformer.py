"""ScatterFormer: point clouds as voxels in windows of any number, by scattered linear attention.

Paper: He et al., "ScatterFormer: Efficient Voxel Transformer with Scattered Linear Attention", arXiv 2401.00912, with
the order of layers of the authors' code (skyhehe123/ScatterFormer). What is registered is their encoder of points and
their 3-D backbone, up to the map of pillars on the ground; the detector behind it is not here, a classifier is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from zoo.config import require_positive
from zoo.layers import recompute
from zoo.layers.batch_norm import BatchNorm1d
from zoo.layers.voxels import (
    CrossWindowInteraction,
    PillarPool,
    PointEncoder,
    ScatteredLinearAttention,
    Sites,
    SparseConv,
    SubmanifoldConv,
    Voxels,
    windows,
)
from zoo.registry import Paper, register_model

Norm = Callable[[int], BatchNorm1d]  # of a width


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScatterFormerConfig:
    """Options of ScatterFormer."""

    in_chans: int = 5
    """Numbers of a point, the first three of them x, y and z."""
    num_points: int = 180_000
    """Points of a cloud that is counted or timed; clouds may have any number."""
    grid: tuple[int, int, int] = (480, 480, 32)
    """Voxels along x, y and z; x and y have zero in the middle."""
    voxel: tuple[float, float, float] = (0.32, 0.32, 0.1875)
    """Edges of a voxel along x, y and z."""
    below: float = 2.0
    """How far below zero the grid begins along z."""
    point_dim: int = 64
    """Width of the encoder of points."""
    dim: int = 128
    """Model width."""
    num_heads: int = 4
    """Heads of the attention in windows."""
    window: int = 12
    """Voxels of a window along x and y, even."""
    stem_depth: int = 3
    """Residual blocks of convolutions before the first stage."""
    depths: tuple[int, int] = (3, 3)
    """Layers of the two stages."""
    pool_heads: int = 8
    """Heads of the attention over the heights of a pillar."""
    num_classes: int = 0
    """Classes of a cloud; 0: no classifier, the map of pillars."""
    label_names: tuple[str, ...] = ()
    """Names of the classes, where they are known."""
    norm_momentum: float = 0.01
    """How much a batch counts in the statistics of the batch norms while the model trains."""

    def __post_init__(self):
        require_positive(self, "in_chans", "num_points", "point_dim", "dim", "num_heads", "window", "stem_depth",
                         "pool_heads")  # fmt: skip
        if len(self.grid) != 3 or len(self.voxel) != 3 or len(self.depths) != 2:
            raise ValueError(
                "grid and voxel must be of x, y and z, and depths of two stages, got "
                f"grid={self.grid}, voxel={self.voxel}, depths={self.depths}"
            )
        if min(self.grid) < 4 or min(self.depths) < 1 or not all(0 < edge < math.inf for edge in self.voxel):
            raise ValueError(
                "grid must have 4 voxels or more along each axis, stages a layer or more, and voxels finite edges "
                f"above 0, got grid={self.grid}, depths={self.depths}, voxel={self.voxel}"
            )
        if not 0 <= self.below < math.inf or self.num_classes < 0:
            raise ValueError(
                "below must be finite and not negative, and num_classes 0 or more, got "
                f"below={self.below}, num_classes={self.num_classes}"
            )
        if not 0 < self.norm_momentum <= 1:
            raise ValueError(f"norm_momentum must be above 0 and at most 1, got {self.norm_momentum}")

    @property
    def input_shape(self) -> tuple[int, int]:
        """Of one sample: (num_points, in_chans)."""
        return self.num_points, self.in_chans

    @property
    def low(self) -> tuple[float, float, float]:
        """Where the grid begins, along x, y and z."""
        return -self.grid[0] * self.voxel[0] / 2, -self.grid[1] * self.voxel[1] / 2, -self.below


class ResidualConvs(nn.Module):
    """x + two submanifold convolutions with batch norms, at the places of x."""

    def __init__(self, dim: int, norm: Norm):
        super().__init__()
        self.first, self.second = (SubmanifoldConv(dim, dim, bias=True) for _ in range(2))
        self.first_norm, self.second_norm = norm(dim), norm(dim)

    def forward(self, x: Tensor, sites: Sites) -> Tensor:
        """x (M, dim) -> (M, dim)."""
        y = self.first_norm(self.first(x, sites)).relu()
        return (x + self.second_norm(self.second(y, sites))).relu()


class ScatterFormerLayer(nn.Module):
    r"""Scattered linear attention, and what crosses the windows' borders with a feed-forward network.

    .. math::
        u = \mathrm{BN}(x + \mathrm{SLA}(\mathrm{BN}(x))), \quad w = \mathrm{CWI}(u), \quad
        y = w + \mathrm{ReLU}(\mathrm{BN}(w) W_1) W_2

    where CWI(u) = u + ... is `CrossWindowInteraction`: the sums go on from a batch norm, as in the authors' code.
    """

    def __init__(self, dim: int, num_heads: int, window: int, norm: Norm):
        super().__init__()
        self.window = window
        self.attention_norm, self.attention = norm(dim), ScatteredLinearAttention(dim, num_heads)
        self.interaction_norm, self.interaction = norm(dim), CrossWindowInteraction(dim, window)
        self.mlp_norm = norm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, sites: Sites) -> Tensor:
        """x (M, dim) -> (M, dim)."""
        x = self.interaction_norm(x + self.attention(self.attention_norm(x), *windows(sites, self.window)))
        x = self.interaction(x, sites)
        return x + self.mlp(self.mlp_norm(x))


class ScatterFormer(nn.Module):
    """Points (B, N, in_chans) to logits of their cloud, or to a map of what stands on the ground.

    Points outside the grid do not count, and neither do those with a number that is not finite: clouds of different
    sizes are padded with such. Voxels that are empty take no time and no memory.

    Attributes:
        config, grad_checkpointing: whether layers are recomputed in the backward pass.
        points, stem, stages, pool, head.
    """

    def __init__(self, config: ScatterFormerConfig):
        super().__init__()
        self.config = c = config
        self.grad_checkpointing = False
        norm = partial(BatchNorm1d, eps=1e-3, momentum=c.norm_momentum)
        self.points = PointEncoder(c.in_chans, c.point_dim, c.voxel, c.low, c.grid, c.norm_momentum)
        self.stem_conv, self.stem_norm = SubmanifoldConv(c.point_dim, c.dim), norm(c.dim)
        self.stem = nn.ModuleList(ResidualConvs(c.dim, norm) for _ in range(c.stem_depth))
        self.lower, self.lower_norm = SparseConv(c.dim, c.dim, (3, 1, 1), (2, 1, 1), (0, 0, 0)), norm(c.dim)
        self.stages = nn.ModuleList(
            nn.ModuleList(ScatterFormerLayer(c.dim, c.num_heads, c.window, norm) for _ in range(depth))
            for depth in c.depths
        )
        self.norms = nn.ModuleList(norm(c.dim) for _ in c.depths)
        self.down = SparseConv(c.dim, c.dim, (3, 3, 3), (2, 2, 2), (1, 1, 1))
        levels = self.down.outputs(self.lower.outputs((c.grid[2] + 1, c.grid[1], c.grid[0])))[0]
        self.pool = PillarPool(c.dim, levels, c.pool_heads)
        self.head = nn.Linear(c.dim, c.num_classes) if c.num_classes else nn.Identity()

    def forward(self, points: Tensor) -> Tensor:
        """Points (B, N, in_chans), of x, y, z and what else is known of them.

        Returns:
            (B, num_classes); without classes (B, dim, y, x), a pillar for every two by two of the grid, zeros where
            there is none.

        Raises:
            ValueError: for points of another shape, or integers; for a cloud without a point in the grid.
        """
        pillars = self.forward_features(points)
        return self.head(self._mean(pillars)) if self.config.num_classes else self._map(pillars)

    def forward_features(self, points: Tensor) -> Voxels:
        """Points to pillars: features (P, dim) and their places. See ``forward``."""
        self._check(points)
        found = self.points(points, self.config.grid[2] + 1)
        x, sites = found.features, found.sites
        x = self.stem_norm(self.stem_conv(x, sites)).relu()
        for block in self.stem:
            x = self._run(block, x, sites)
        found = self.lower(x, sites)
        x, sites = self.lower_norm(found.features).relu(), found.sites
        for index, (layers, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            if index:
                found = self.down(x, sites)
                x, sites = found.features, found.sites
            for layer in layers:  # type: ignore[union-attr]
                x = self._run(layer, x, sites)
            x = norm(x)
        return self.pool(x, sites)

    def no_weight_decay(self) -> set[str]:
        """The vectors of heights, besides biases and norms."""
        return {"pool.height"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each layer in the backward pass instead of storing its activations."""
        self.grad_checkpointing = enable

    def _run(self, layer: nn.Module, x: Tensor, sites: Sites) -> Tensor:
        return recompute(layer, x, sites) if self.grad_checkpointing and self.training else layer(x, sites)

    def _mean(self, pillars: Voxels) -> Tensor:
        """(B, dim), over the pillars of each cloud."""
        x, sites, clouds = pillars.features, pillars.sites, pillars.sites.shape[0]
        cloud = sites.coordinates[:, 0]
        cloud = cloud if sites.valid is None else torch.where(sites.valid, cloud, clouds)
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        wide = torch.promote_types(x.dtype, torch.float32)
        total = x.new_zeros(clouds + 1, x.shape[1], dtype=wide).index_add(0, cloud, x.to(wide))[:-1]
        return (total[:, :-1] / total[:, -1:].clamp(min=1)).to(x.dtype)

    def _map(self, pillars: Voxels) -> Tensor:
        x, (clouds, _, *ground) = pillars.features, pillars.sites.shape
        cells = clouds * ground[0] * ground[1]
        cloud, _, row, column = pillars.sites.coordinates.unbind(1)
        place = (cloud * ground[0] + row) * ground[1] + column
        place = place if pillars.sites.valid is None else torch.where(pillars.sites.valid, place, cells)
        flat = x.new_zeros(cells + 1, x.shape[1]).index_add(0, place, x)[:-1]
        return flat.view(clouds, *ground, x.shape[1]).permute(0, 3, 1, 2)

    def _check(self, points: Tensor) -> None:
        if points.dim() != 3 or points.shape[2] != self.config.in_chans or not points.is_floating_point():
            raise ValueError(
                f"points must be (batch, points, in_chans {self.config.in_chans}) floats, got {tuple(points.shape)} "
                f"{points.dtype}"
            )


_register = partial(
    register_model, ScatterFormer, task="point-classification", family="scatterformer",
    paper=Paper("ScatterFormer: Efficient Voxel Transformer with Scattered Linear Attention", "2401.00912", 2024),
)  # fmt: skip


@_register()
def scatterformer_nano():
    return ScatterFormerConfig(
        in_chans=3, num_points=256, grid=(16, 16, 16), voxel=(0.125, 0.125, 0.125), below=1.0, point_dim=16, dim=32,
        window=4, stem_depth=1, depths=(1, 1), pool_heads=4, num_classes=8, norm_momentum=0.1,
        label_names=("sphere", "cube", "cylinder", "cone", "torus", "pyramid", "helix", "cross"),
    )  # fmt: skip


@_register()
def scatterformer_waymo():
    return ScatterFormerConfig()


@_register()
def scatterformer_nuscenes():
    return ScatterFormerConfig(num_points=240_000, grid=(360, 360, 40), voxel=(0.3, 0.3, 0.2), below=5.0, window=20)
