"""DFA3D: what stands around, seen from above, out of the images of several cameras, lifted by their depths.

Papers: Li et al., "DFA3D: 3D Deformable Attention For 2D-to-3D Feature Lifting", arXiv 2307.12972; Li et al.,
"BEVFormer: Learning Bird's-Eye-View Representation from Multi-Camera Images via Spatiotemporal Transformers", arXiv
2203.17270, whose encoder it is put into: queries for the cells of the ground, layers of deformable self-attention,
attention to the cameras and a feed-forward network. Backbone, sizes and the answer (is a cell occupied?) are ours.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import torch
from torch import Tensor, nn

from zoo.config import require_positive, require_ranges
from zoo.layers import LayerNorm, Mlp, recompute
from zoo.layers.attention import CameraAttention, DeformableAttention
from zoo.layers.conv import ConvNorm
from zoo.layers.precision import KeepsFloat32
from zoo.registry import Paper, register_model
from zoo.spatial.cameras import Rig, ground

STRIDE = 2  # of the backbone


@dataclasses.dataclass(frozen=True, kw_only=True)
class DFA3DConfig:
    """Options of DFA3D."""

    num_cameras: int = 4
    """Cameras, turned evenly round a mast in the middle."""
    img_size: tuple[int, int] = (24, 32)
    """Height and width of an image, even."""
    in_chans: int = 3
    """Channels of an image."""
    camera_height: float = 1.5
    """Of the cameras above the ground, in metres."""
    view_angle: float = 100.0
    """Degrees that an image shows from left to right."""
    near: float = 1.0
    """Where the bins of depth begin, in metres."""
    far: float = 11.0
    """Where they end."""
    num_bins: int = 20
    """Bins of depth."""
    reach: float = 8.0
    """Half the side of the ground that is answered for, in metres."""
    cells: int = 16
    """Cells along a side."""
    ceiling: float = 2.0
    """Up to which height the cameras are asked."""
    num_heights: int = 4
    """Heights that a cell asks about."""
    dim: int = 32
    """Model width."""
    depth: int = 2
    """Layers."""
    num_heads: int = 4
    """Heads of the attentions."""
    num_points: int = 8
    """Points that a head reads of an image, a multiple of num_heights."""
    plane_points: int = 4
    """Points that a head reads of the ground."""
    mlp_ratio: float = 2.0
    """Hidden units over dim."""
    lift: bool = True
    """Read features at their depth; False reads them on the image plane: 2D deformable attention."""

    def __post_init__(self):
        require_positive(self, "num_cameras", "in_chans", "num_bins", "cells", "num_heights", "dim", "depth",
                         "num_heads", "num_points", "plane_points")  # fmt: skip
        require_ranges(self)
        if len(self.img_size) != 2 or min(self.img_size) < STRIDE or any(side % STRIDE for side in self.img_size):
            raise ValueError(f"img_size must be two even numbers, height and width, got {self.img_size}")
        lengths = (self.camera_height, self.near, self.far, self.reach, self.ceiling)
        if not all(0 < length < math.inf for length in lengths) or self.far <= self.near:
            raise ValueError(
                "camera_height, near, far, reach and ceiling must be finite and above 0, and far above near, got "
                f"{', '.join(map(str, lengths))}"
            )
        if not 0 < self.view_angle < 180 or self.num_points % self.num_heights or self.dim % self.num_heads:
            raise ValueError(
                "view_angle must be between 0 and 180, num_points a multiple of num_heights and dim one of num_heads, "
                f"got view_angle={self.view_angle}, num_points={self.num_points}, num_heights={self.num_heights}, "
                f"dim={self.dim}, num_heads={self.num_heads}"
            )

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Of one sample: (num_cameras, in_chans, height, width)."""
        return self.num_cameras, self.in_chans, *self.img_size

    @property
    def rig(self) -> Rig:
        """The cameras."""
        return Rig(self.num_cameras, self.camera_height, self.view_angle, self.img_size, self.near, self.far)


class DFA3DLayer(nn.Module):
    """Deformable attention on the ground, attention to the cameras and a feed-forward network, each x = LN(x + ...)."""

    def __init__(self, config: DFA3DConfig):
        super().__init__()
        self.config = c = config
        self.plane = DeformableAttention(c.dim, c.num_heads, c.plane_points, lift=False)
        self.cameras = CameraAttention(c.dim, c.num_heads, c.num_points, lift=c.lift)
        self.mlp = Mlp(c.dim, int(c.dim * c.mlp_ratio))
        self.norms = nn.ModuleList(LayerNorm(c.dim) for _ in range(3))

    def forward(
        self, x: Tensor, here: Tensor, seen: Tensor, anchors: Tensor, features: Tensor, depth: Tensor | None
    ) -> Tensor:
        """x (B, cells^2, dim) at ``here`` (cells^2, 1, 2) of the ground; the rest as in `CameraAttention`."""
        side = self.config.cells
        plane = self.plane(x, here[None].expand(len(x), -1, -1, -1), [x.unflatten(1, (side, side))])
        x = self.norms[0](x + plane)
        x = self.norms[1](x + self.cameras(x, seen, anchors, [features], None if depth is None else [depth]))
        return self.norms[2](x + self.mlp(x))


class DFA3D(KeepsFloat32):
    """Images (B, num_cameras, in_chans, H, W) to logits of the cells of the ground around that something stands there.

    Attributes:
        config, grad_checkpointing: whether layers are recomputed in the backward pass.
        backbone, depth_head, queries, layers, head.
        here, seen, anchors: where the cells are on the ground and, of each camera, those that it sees and where.
    """

    here: Tensor
    seen: Tensor
    anchors: Tensor
    float32_buffers = ("here", "anchors")

    def __init__(self, config: DFA3DConfig):
        super().__init__()
        self.config = c = config
        self.grad_checkpointing = False
        self.backbone = nn.Sequential(
            ConvNorm(c.in_chans, c.dim // 2, 3, relu=True), ConvNorm(c.dim // 2, c.dim, 3, STRIDE, relu=True),
            ConvNorm(c.dim, c.dim, 3, relu=True), ConvNorm(c.dim, c.dim, 3, relu=True),
        )  # fmt: skip
        self.depth_head = nn.Linear(c.dim, c.num_bins)
        self.queries = nn.Parameter(0.02 * torch.randn(c.cells**2, c.dim))
        self.layers = nn.ModuleList(DFA3DLayer(c) for _ in range(c.depth))
        self.head = nn.Linear(c.dim, 1)
        with torch.device("cpu"):  # its shapes depend on its numbers
            geometry = _geometry(c)
        here = torch.empty(0).device  # of buffers, also where parameters have no memory yet
        for name, tensor in zip(("here", "seen", "anchors"), geometry, strict=True):
            self.register_buffer(name, tensor.to(here), persistent=False)

    def forward(
        self, images: Tensor, depth: Tensor | None = None, *, return_depth: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """See what stands around.

        Args:
            images: (B, num_cameras, in_chans, H, W).
            depth: (B, num_cameras, H / 2, W / 2, num_bins), distributions to be believed instead of what the model
                makes of the images.
            return_depth: return the logits of its own distributions too.

        Returns:
            (B, cells, cells) logits, y by y; with them (B, num_cameras, H / 2, W / 2, num_bins) of the bins of depth.

        Raises:
            ValueError: for images or depths of another shape, or integers.
        """
        c = self.config
        self._check(images, depth)
        features = self.backbone(images.flatten(0, 1)).movedim(1, -1).unflatten(0, images.shape[:2])
        logits = self.depth_head(features)
        if c.lift and depth is None:
            depth = logits.softmax(-1)
        x = self.queries.expand(len(images), -1, -1)
        for layer in self.layers:
            given = (self.here, self.seen, self.anchors, features, depth if c.lift else None)
            x = recompute(layer, x, *given) if self.grad_checkpointing and self.training else layer(x, *given)
        found = self.head(x)[..., 0].unflatten(1, (c.cells, c.cells))
        return (found, logits) if return_depth else found

    def no_weight_decay(self) -> set[str]:
        """The queries, besides biases and norms."""
        return {"queries"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each layer in the backward pass instead of storing its activations."""
        self.grad_checkpointing = enable

    def _check(self, images: Tensor, depth: Tensor | None) -> None:
        c = self.config
        if images.dim() != 5 or images.shape[1:] != c.input_shape or not images.is_floating_point():
            raise ValueError(
                f"images must be (batch, num_cameras, in_chans, height, width) floats with {c.input_shape} behind the "
                f"batch, got {tuple(images.shape)} {images.dtype}"
            )
        wanted = (len(images), c.num_cameras, *(side // STRIDE for side in c.img_size), c.num_bins)
        if depth is not None and depth.shape != wanted:
            raise ValueError(f"depth must have the shape {wanted}, got {tuple(depth.shape)}")


def _geometry(c: DFA3DConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Cells on the ground (cells^2, 1, 2); of each camera those that it sees (V, L), and where (V, L, heights, 3)."""
    points = ground(c.reach, c.cells, c.num_heights, c.ceiling)
    here = (points[:, :1, :2] / c.reach + 1) / 2
    anchors, inside = c.rig.project(points)  # (V, cells^2, heights, 3)
    visible = inside.any(2)
    longest = max(1, int(visible.sum(1).max()))
    order = visible.int().sort(dim=1, descending=True, stable=True).indices[:, :longest]
    seen = torch.where(visible.gather(1, order), order, -1)
    at = anchors[torch.arange(c.num_cameras)[:, None], order]
    return here, seen, at if c.lift else at[..., :2]


_register = partial(
    register_model, DFA3D, task="birds-eye-occupancy", family="dfa3d",
    paper=Paper("DFA3D: 3D Deformable Attention For 2D-to-3D Feature Lifting", "2307.12972", 2023),
)  # fmt: skip


@_register()
def dfa3d_nano():
    return DFA3DConfig()
