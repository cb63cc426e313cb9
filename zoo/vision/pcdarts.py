"""PC-DARTS: the cells that a search over partially connected channels found, stacked.

Paper: Xu et al., "PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search", arXiv 1907.05737.
Cells and sizes are those of the authors' code (yuhuixu1993/PC-DARTS), which counts 3.63 M parameters for CIFAR and
5.34 M for ImageNet without the auxiliary head; the paper's tables give 3.6 M and 5.3 M. The search is
``zoo.train.tasks.ArchitectureSearch``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import require_positive
from zoo.layers import Cell, ConvNorm
from zoo.layers.batch_norm import BatchNorm2d
from zoo.layers.conv.cell import Edge, check_edges
from zoo.registry import Paper, register_model
from zoo.vision.base import VisionModel
from zoo.vision.hierarchical import HierarchicalConfig, HierarchicalModel

CIFAR_NORMAL: tuple[Edge, ...] = (
    ("sep_conv_3x3", 1), ("skip_connect", 0), ("sep_conv_3x3", 0), ("dil_conv_3x3", 1),
    ("sep_conv_5x5", 0), ("sep_conv_3x3", 1), ("avg_pool_3x3", 0), ("dil_conv_3x3", 1),
)  # fmt: skip
CIFAR_REDUCE: tuple[Edge, ...] = (
    ("sep_conv_5x5", 1), ("max_pool_3x3", 0), ("sep_conv_5x5", 1), ("sep_conv_5x5", 2),
    ("sep_conv_3x3", 0), ("sep_conv_3x3", 3), ("sep_conv_3x3", 1), ("sep_conv_3x3", 2),
)  # fmt: skip
IMAGENET_NORMAL: tuple[Edge, ...] = (
    ("skip_connect", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 0), ("skip_connect", 1),
    ("sep_conv_3x3", 1), ("sep_conv_3x3", 3), ("sep_conv_3x3", 1), ("dil_conv_5x5", 4),
)  # fmt: skip
IMAGENET_REDUCE: tuple[Edge, ...] = (
    ("sep_conv_3x3", 0), ("skip_connect", 1), ("dil_conv_5x5", 2), ("max_pool_3x3", 1),
    ("sep_conv_3x3", 2), ("sep_conv_3x3", 1), ("sep_conv_5x5", 0), ("sep_conv_3x3", 3),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class PCDARTSConfig(HierarchicalConfig):
    """Options of PC-DARTS' networks. ``dims`` are the channels of a stage's maps, one share a node of its cells;
    ``depths`` its cells, which after the first stage begin with a reduction; ``drop_path_rate`` is of every edge
    but the identity, rising from the first to the last cell (the authors raise it over the epochs instead)."""

    stem_strides: tuple[int, ...] = (1,)
    stem_dim: int
    """Channels of the stem, whose one convolution, or three of stride 2 for large images, have stem_strides."""
    normal: tuple[Edge, ...]
    """Edges of a normal cell, (operation, source)."""
    reduce: tuple[Edge, ...]
    """Edges of a reduction cell, (operation, source)."""
    auxiliary_weight: float = 0.0
    """Weight of the loss of a second classifier in training, in the last stage after the reduction; 0 for none."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "stem_dim")
        for field in ("normal", "reduce"):
            edges = tuple((str(name), int(source)) for name, source in getattr(self, field))
            object.__setattr__(self, field, edges)  # lists after a round through JSON
            check_edges(edges)
            if any(dim % (len(edges) // 2) for dim in self.dims):
                raise ValueError(f"dims must be multiples of the {len(edges) // 2} nodes of {field}, got {self.dims}")
        if len(self.stem_strides) not in (1, 3):
            raise ValueError(f"stem_strides must hold 1 stride, or 3, got {self.stem_strides}")
        if 0 in self.depths or not self.auxiliary_weight >= 0:
            raise ValueError(
                f"depths must be positive and auxiliary_weight at least 0, got {self.depths}, {self.auxiliary_weight}"
            )


class Stem(nn.Sequential):
    """Image -> the two maps that enter the first cell: one convolution's twice, or those of a stride of 4 and 8."""

    def __init__(self, in_chans: int, dim: int, strides: tuple[int, ...]):
        widths = (in_chans, dim) if len(strides) == 1 else (in_chans, dim // 2, dim, dim)
        super().__init__(*(ConvNorm(a, b, 3, s) for a, b, s in zip(widths, widths[1:], strides, strict=False)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x (B, C, H, W) -> two maps."""
        first, *rest = self
        before = x = first(x)
        for conv in rest:
            before, x = x, conv(F.relu(x))
        return before, x


class AuxiliaryHead(nn.Module):
    """A classifier on a map within the network, which shortens the way of the gradient in training.

    As published, the second convolution takes all there is after the pooling; on larger maps its results are averaged.
    """

    def __init__(self, dim: int, num_classes: int, stride: int, norm: bool):
        super().__init__()
        self.pool = nn.AvgPool2d(5, stride)
        self.reduce = ConvNorm(dim, 128, relu=True)
        self.conv = nn.Conv2d(128, 768, 2, bias=False)
        self.norm = BatchNorm2d(768) if norm else nn.Identity()
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, H, W), sides of at least 5 + stride -> (B, num_classes)."""
        x = F.relu(self.norm(self.conv(self.reduce(self.pool(F.relu(x))))))
        return self.classifier(x.mean((2, 3)))


class Place(NamedTuple):
    """Of a cell: channels of its inputs, whether it halves the resolution, and whether the cell before did."""

    dims: tuple[int, int]
    reduction: bool
    halve_first: bool


class PCDARTS(HierarchicalModel):
    """Stem, stages of ``Cell``, average pooling, classifier; what passes between cells are the maps of the last two.

    Attributes: auxiliary_logits, of the last training pass with an auxiliary head: (weight of its loss, its logits).
    """

    config: PCDARTSConfig
    auxiliary_logits: tuple[float, Tensor] | None = None

    def __init__(self, config: PCDARTSConfig):
        super().__init__(config)
        small = len(config.stem_strides) == 1
        self.auxiliary_head = (
            AuxiliaryHead(config.dim, config.num_classes, 3 if small else 2, norm=small)
            if config.auxiliary_weight and config.num_classes
            else None
        )

    def build_downsample(self, stage: int) -> nn.Module:
        """The stem; other stages begin with a cell that reduces."""
        c = self.config
        return nn.Identity() if stage else Stem(c.in_chans, c.stem_dim, c.stem_strides)

    def build_block(self, stage: int, index: int, drop_path: float) -> nn.Module:
        """A cell, at its place among all cells."""
        c, place = self.config, self.place(stage, index)
        edges = c.reduce if place.reduction else c.normal
        return Cell(
            place.dims, c.dims[stage] // (len(edges) // 2), edges,
            reduction=place.reduction, halve_first=place.halve_first, drop_path=drop_path,
        )  # fmt: skip

    def place(self, stage: int, index: int) -> Place:
        """Of a cell among all of them."""
        c = self.config
        widths = [c.stem_dim] * 2 + [dim for dim, depth in zip(c.dims, c.depths, strict=True) for _ in range(depth)]
        reduces = [len(c.stem_strides) == 3] + [s > 0 and i == 0 for s, n in enumerate(c.depths) for i in range(n)]
        place = sum(c.depths[:stage]) + index
        return Place((widths[place], widths[place + 1]), reduces[place + 1], reduces[place])

    def forward_norm(self, x: tuple[Tensor, Tensor]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The map of the last cell."""
        return x[1]

    def feature_map(self, x: Tensor | tuple[Tensor, Tensor], grid: tuple[int, int] = (0, 0)) -> Tensor:
        """The map of the last cell of a stage."""
        return x if isinstance(x, Tensor) else x[1]

    def patch_tokens(self, x: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """That map (B, dim, H, W) to tokens (B, H * W, dim)."""
        return super().patch_tokens(self.feature_map(x))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier, and auxiliary classifier, for ``num_classes``; neither for 0."""
        super().reset_classifier(num_classes, global_pool)
        if self.auxiliary_head is not None:
            old, like = self.auxiliary_head.classifier, next(self.parameters())
            self.auxiliary_head.classifier = nn.Linear(old.in_features, num_classes).to(like.device, like.dtype)
            self.auxiliary_head = self.auxiliary_head if num_classes else None

    def adapt_tensors(self, tensors: Mapping[str, Tensor], known: Any = None) -> dict[str, Tensor]:
        """Without an auxiliary head that this model has not."""
        kept = super().adapt_tensors(tensors, known)
        if self.auxiliary_head is None:
            return {key: tensor for key, tensor in kept.items() if not key.startswith("auxiliary_head.")}
        return kept

    def fuse(self) -> PCDARTS:
        """As of every vision model; the auxiliary head, which serves training alone, goes."""
        self.auxiliary_head = None
        super().fuse()
        return self

    def _run(self, block: nn.Module, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:  # pyright: ignore
        if self.auxiliary_head is None or not self.training or block is not self.stages[-1]:
            return super()._run(block, x)  # type: ignore[arg-type]
        first, *rest = block.blocks  # type: ignore[misc]
        x = VisionModel._run(self, first, x)  # type: ignore[arg-type]
        self.auxiliary_logits = self.config.auxiliary_weight, self.auxiliary_head(x[1])
        for cell in rest:
            x = VisionModel._run(self, cell, x)  # type: ignore[arg-type]
        return x


_register = partial(
    register_model, PCDARTS, task="image-classification", family="pcdarts",
    paper=Paper("PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search", "1907.05737", 2020),
)  # fmt: skip
_cifar = partial(PCDARTSConfig, normal=CIFAR_NORMAL, reduce=CIFAR_REDUCE)


@_register()
def pcdarts_nano():
    return _cifar(
        img_size=8, in_chans=1, num_classes=10, mean=(0.305,), std=(0.376,), crop_pct=1.0,
        dims=(64, 128), depths=(2, 2), stem_dim=16,
    )  # fmt: skip


@_register()
def pcdarts_cifar():
    return _cifar(
        img_size=32, num_classes=10, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), crop_pct=1.0,
        dims=(144, 288, 576), depths=(6, 7, 7), stem_dim=108,
    )  # fmt: skip


@_register()
def pcdarts_imagenet():
    return PCDARTSConfig(
        stem_strides=(2, 2, 2), stem_dim=48, dims=(192, 384, 768), depths=(4, 5, 5),
        normal=IMAGENET_NORMAL, reduce=IMAGENET_REDUCE, interpolation="bilinear", crop_pct=0.875,
    )  # fmt: skip
