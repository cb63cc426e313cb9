"""VMamba: hierarchical stages of two-dimensional selective scans.

Paper: Liu et al., "VMamba: Visual State Space Model", arXiv 2401.10166. The names are those of the authors' code
(MzeroMiko/VMamba): ``s2l15`` has states of twice the width in 15 blocks of the third stage, and the ``vanilla`` models
are those of the paper's first version. ``checkpoints/convert/vmamba.py`` reads their weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from zoo.config import require_positive
from zoo.layers import SS2D, DropPath, Mlp
from zoo.layers.conv import LayerNorm2d, NeighbourMerging, conv_layer_norm
from zoo.registry import Paper, register_model
from zoo.vision.hierarchical import HierarchicalConfig, HierarchicalModel, Run, Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class VMambaConfig(HierarchicalConfig):
    """Options of VMamba."""

    stem_strides: tuple[int, ...] = (2, 2)
    d_state: int = 1
    """State size of a channel in a direction."""
    expand: int = 2
    """Inner width of the scans over the stage's."""
    mlp_ratio: float | None = 4.0
    """Hidden width of the feed-forward layers over the stage's; None for none."""
    gated: bool = False
    """The scans' outputs are gated."""
    conv_bias: bool = False
    """The convolutions before the scans have biases."""
    overlapping: bool = True
    """Stem and downsampling are convolutions over overlapping patches; otherwise the stem is one over patches of the
    product of stem_strides, and four neighbours are merged between stages."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "d_state", "expand")
        if len(self.stem_strides) != 2:
            raise ValueError(f"stem_strides must hold 2 strides, got {self.stem_strides}")

    def map_shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(height, width) of each stage's map: rounded up, but for what patches that do not overlap leave over."""
        patch = 1 if self.overlapping else math.prod(self.stem_strides)
        return super().map_shapes(height - height % patch, width - width % patch)


class VMambaBlock(nn.Module):
    """x + op(norm(x)), then the same of the feed-forward layer where there is one."""

    def __init__(self, dim: int, op: nn.Module, mlp_ratio: float | None, drop_path: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.op = op
        self.drop_path = DropPath(drop_path)
        self.mlp = None
        if mlp_ratio is not None:
            self.norm2 = nn.LayerNorm(dim)
            self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, dim) -> (B, H, W, dim)."""
        x = x + self.drop_path(self.op(self.norm(x)))
        return x if self.mlp is None else x + self.drop_path(self.mlp(self.norm2(x)))


class ChannelsLastStage(Stage):
    """A stage whose blocks see (B, height, width, dim)."""

    def run_blocks(self, x: Tensor, run: Run) -> Tensor:
        """Map (B, dim, height, width) -> the same shape."""
        return super().run_blocks(x.permute(0, 2, 3, 1), run).permute(0, 3, 1, 2)


class VMamba(HierarchicalModel):
    """Stem, stages of ``VMambaBlock``, layer norm, average pooling, classifier."""

    config: VMambaConfig

    def __init__(self, config: VMambaConfig):
        super().__init__(config)
        for module in self.stages.modules():
            if isinstance(module, Mlp):
                for linear in (module.fc1, module.fc2):
                    nn.init.trunc_normal_(linear.weight, std=0.02)
                    nn.init.zeros_(linear.bias)

    def build_downsample(self, stage: int) -> nn.Module:
        """The stem, or half the resolution."""
        c, (first, second) = self.config, self.config.stem_strides
        if stage:
            before, dim = c.dims[stage - 1 : stage + 1]
            return conv_layer_norm(before, dim, 3, 2) if c.overlapping else NeighbourMerging(before, dim)
        if not c.overlapping:
            return nn.Sequential(conv_layer_norm(c.in_chans, c.dims[0], first * second, first * second))
        narrow = c.dims[0] // 2
        return nn.Sequential(
            conv_layer_norm(c.in_chans, narrow, 3, first), nn.GELU(), conv_layer_norm(narrow, c.dims[0], 3, second)
        )

    def build_block(self, stage: int, index: int, drop_path: float) -> VMambaBlock:
        """Blocks of a stage are alike."""
        c, dim = self.config, self.config.dims[stage]
        op = SS2D(dim, c.d_state, c.expand, gated=c.gated, conv_bias=c.conv_bias)
        return VMambaBlock(dim, op, c.mlp_ratio, drop_path)

    def build_stage(self, index: int, downsample: nn.Module, blocks: Sequence[nn.Module]) -> Stage:
        """Of channels last."""
        return ChannelsLastStage(downsample, blocks)

    def build_norm(self) -> nn.Module:
        """Layer norm at every position."""
        return LayerNorm2d(self.config.dim)

    def _check_shape(self, x: Tensor) -> None:
        super()._check_shape(x)
        patch = 1 if self.config.overlapping else math.prod(self.config.stem_strides)
        if min(x.shape[2:]) < patch:
            raise ValueError(f"images must have sides of at least {patch} pixels, a patch, got {tuple(x.shape[2:])}")


_register = partial(
    register_model,
    VMamba,
    task="image-classification",
    family="vmamba",
    paper=Paper("VMamba: Visual State Space Model", "2401.10166", 2024),
)


def _sized(dim: int, third: int, expand: int = 2, **options: Any) -> VMambaConfig:
    """Widths double from stage to stage; ``third`` blocks in the third."""
    return VMambaConfig(dims=(dim, 2 * dim, 4 * dim, 8 * dim), depths=(2, 2, third, 2), expand=expand, **options)


_vanilla = partial(_sized, d_state=16, mlp_ratio=None, gated=True, conv_bias=True, overlapping=False)


@_register()
def vmamba_nano():
    return VMambaConfig(
        img_size=8, in_chans=1, num_classes=10, mean=(0.305,), std=(0.376,), crop_pct=1.0, stem_strides=(1, 1),
        dims=(32, 64), depths=(1, 2), mlp_ratio=2.0,
    )  # fmt: skip


@_register()
def vanilla_vmamba_tiny():
    return _vanilla(96, 9)


@_register()
def vanilla_vmamba_small():
    return _vanilla(96, 27)


@_register()
def vanilla_vmamba_base():
    return _vanilla(128, 27)


@_register()
def vmamba_tiny_s2l5():
    return _sized(96, 5)


@_register()
def vmamba_small_s2l15():
    return _sized(96, 15)


@_register()
def vmamba_base_s2l15():
    return _sized(128, 15)


@_register()
def vmamba_tiny_s1l8():
    return _sized(96, 8, expand=1)


@_register()
def vmamba_small_s1l20():
    return _sized(96, 20, expand=1)


@_register()
def vmamba_base_s1l20():
    return _sized(128, 20, expand=1)
