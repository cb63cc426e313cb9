"""What convolutional backbones share: stages of falling resolution whose outputs are feature maps."""

from __future__ import annotations

import dataclasses
import math
import operator
from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from zoo.layers import ConvStem, MergingDownsample, NormLinear
from zoo.vision.base import VisionConfig, VisionModel, drop_path_rates


@dataclasses.dataclass(frozen=True, kw_only=True)
class HierarchicalConfig(VisionConfig):
    """Options of every hierarchical model."""

    dims: tuple[int, ...]
    """Channels of each stage."""
    depths: tuple[int, ...]
    """Blocks of each stage."""
    stem_strides: tuple[int, ...] = (2, 2, 2, 2)
    """Strides of the convolutions that come first."""
    global_pool: str = "avg"
    """"avg", "max", or "" for features that stay maps (and no classes)."""
    crop_pct: float = 0.875

    def __post_init__(self):
        super().__post_init__()
        self.require_one_each("dims")
        self.require_one_each("depths", least=0)
        if not self.stem_strides or set(self.stem_strides) - {1, 2}:
            raise ValueError(f"stem_strides must be some of 1 and 2, got {self.stem_strides}")
        if self.global_pool not in ("avg", "max", ""):
            raise ValueError(f"global_pool must be 'avg', 'max', or '' for no pooling, got {self.global_pool!r}")
        if self.global_pool == "" and self.num_classes > 0:
            raise ValueError(
                f"global_pool '' leaves maps, which cannot be classified: got num_classes {self.num_classes}"
            )

    def require_one_each(self, *fields: str, least: int = 1) -> None:
        """Raise a ValueError unless the named fields hold one integer of at least ``least`` a stage."""
        for field in fields:
            values, wanted = getattr(self, field), len(self.dims)
            if len(values) != wanted or not all(isinstance(value, int) and value >= least for value in values):
                raise ValueError(f"{field} must hold {wanted} integers from {least}, one a stage, got {values}")

    @property
    def dim(self) -> int:
        """Channels of the last map."""
        return self.dims[-1]

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of a stage's input that a pixel of its output stands for, along each side."""
        return (math.prod(self.stem_strides), *[2] * (len(self.dims) - 1))

    def map_shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(height, width) of each stage's map: convolutions with a stride round up."""
        reductions = accumulate(self.strides, operator.mul)
        return [(math.ceil(height / reduction), math.ceil(width / reduction)) for reduction in reductions]

    @property
    def map_shape(self) -> tuple[int, int]:
        """(height, width) of the last map at ``img_size``."""
        return self.map_shapes(*self.image_shape)[-1]

    @property
    def drop_path_rates(self) -> list[list[float]]:
        """The rate of each block of each stage."""
        rates = iter(drop_path_rates(self.drop_path_rate, sum(self.depths)))
        return [[next(rates) for _ in range(depth)] for depth in self.depths]


Run = Callable[[nn.Module, Tensor], Tensor]


def call(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x)."""
    return layer(x)


class Stage(nn.Module):
    """y = blocks(downsample(x)); the first stage's downsampling is the stem."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, run: Run = call) -> Tensor:
        """Map (B, C, H, W) -> map (B, dim, height, width); ``run(layer, x)`` is how each layer is called."""
        return self.run_blocks(run(self.downsample, x), run)

    def run_blocks(self, x: Tensor, run: Run) -> Tensor:
        """Map (B, dim, height, width) -> the same shape; a stage whose blocks see another layout changes it here."""
        for block in self.blocks:
            x = run(block, x)
        return x


class HierarchicalModel(VisionModel):
    """Images to logits through ``stages``, average pooling and a classifier; a family says how to build the parts.

    Images may have any size; ``img_size`` of the configuration is what the weights are made for. Gradient checkpointing
    recomputes a block at a time, and updates the running statistics of batch norms once, as without it.
    """

    fixed_input_size = False
    first_conv = "stages.0.downsample.0.conv"
    config: HierarchicalConfig

    def __init__(self, config: Any):
        super().__init__(config)
        self.stages = nn.ModuleList(
            self.build_stage(
                index,
                self.build_downsample(index),
                [self.build_block(index, block, rate) for block, rate in enumerate(rates)],
            )
            for index, rates in enumerate(config.drop_path_rates)
        )
        self.norm = self.build_norm()
        self.head = self.build_head()

    @abstractmethod
    def build_downsample(self, stage: int) -> nn.Module:
        """What brings the map of the stage before (for stage 0 the image) to the width and resolution of ``stage``."""

    @abstractmethod
    def build_block(self, stage: int, index: int, drop_path: float) -> nn.Module:
        """Block ``index`` of ``stage``."""

    def build_stage(self, index: int, downsample: nn.Module, blocks: Sequence[nn.Module]) -> Stage:
        """Stage ``index`` of its parts."""
        return Stage(downsample, blocks)

    def build_norm(self) -> nn.Module:
        """The norm of the last map; identity in most families."""
        return nn.Identity()

    def layer_list(self) -> tuple[str, nn.ModuleList]:
        """The stages."""
        return "stages", self.stages

    def forward_embed(self, x: Tensor) -> Tensor:
        """The image itself: the first stage begins with the stem."""
        return x

    def forward_norm(self, x: Tensor) -> Tensor:
        """The map, normalised where the family does."""
        return self.norm(x)

    def grid_of(self, x: Tensor) -> tuple[int, int]:
        """That of the pixels."""
        return x.shape[2], x.shape[3]

    def feature_map(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """The map itself."""
        return x

    def patch_tokens(self, x: Tensor) -> Tensor:
        """Map (B, dim, H, W) to tokens (B, H * W, dim)."""
        return x.flatten(2).mT

    def pool(self, x: Tensor) -> Tensor:
        """Mean or maximum over positions, (B, dim); the map itself for global_pool ''."""
        if self.config.global_pool == "":
            return x
        return x.mean((2, 3)) if self.config.global_pool == "avg" else x.amax((2, 3))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier for ``num_classes``, none for 0; ``global_pool`` None keeps the present pooling.

        Raises:
            ValueError: for another pooling than "avg", "max" or "", or "" with classes.
        """
        self._replace_head(
            num_classes=num_classes, global_pool=self.config.global_pool if global_pool is None else global_pool
        )

    def get_classifier(self) -> nn.Module:
        """The linear layer, without the norm that may precede it."""
        return getattr(self.head, "linear", self.head)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """One dict a stage: num_chs (channels), reduction (pixels a feature), module (dotted name)."""
        reductions = list(accumulate(self.config.strides, operator.mul))
        return [
            {"num_chs": self.config.dims[i], "reduction": reductions[i], "module": f"stages.{i}"}
            for i in range(len(self.stages))
        ]

    def no_weight_decay(self) -> set[str]:
        """The matrices that stay float32: decay rates of states. Nothing else, besides biases and norms."""
        kept = (
            (f"{prefix}.{name}", getattr(module, name))
            for prefix, module in self.named_modules()
            for name in getattr(module, "float32_parameters", ())
        )
        return {name for name, parameter in kept if parameter.dim() > 1}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort parameters by depth: a group a stage, or (not coarse) a block."""
        fine = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stages\.0\.downsample", "blocks": r"^stages\.(\d+)" if coarse else fine}

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        return block(x, super()._run)

    def _check_shape(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.config.in_chans:
            raise ValueError(
                f"images must have shape (batch, {self.config.in_chans}, height, width), got {tuple(x.shape)}: create "
                "the model with in_chans=... for other channels"
            )


class MergingModel(HierarchicalModel):
    """The frame of EfficientViT and SHViT: ``ConvStem``, ``MergingDownsample`` between stages, batch norm before the
    classifier."""

    classifier = "head.linear"

    def build_downsample(self, stage: int) -> nn.Module:
        """The stem, or a merging of patches at the drop path rate of the block after it."""
        c = self.config
        if stage == 0:
            return ConvStem(c.in_chans, c.dims[0], c.stem_strides)
        return MergingDownsample(c.dims[stage - 1], c.dims[stage], min(c.drop_path_rates[stage], default=0.0))

    def build_head(self) -> nn.Module:
        """``NormLinear``; identity for 0 classes."""
        return NormLinear(self.config.dim, self.config.num_classes) if self.config.num_classes else nn.Identity()
