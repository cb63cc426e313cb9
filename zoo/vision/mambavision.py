"""MambaVision: two stages of convolutions, then two whose blocks scan first and attend last, within windows.

Paper: Hatamizadeh and Kautz, "MambaVision: A Hybrid Mamba-Transformer Vision Backbone", arXiv 2407.08083. Sizes are
those of the authors' code (NVlabs/MambaVision); ``checkpoints/convert/mambavision.py`` reads their weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.config import require_positive
from zoo.layers import Attention, ConvNorm, DropPath, MambaVisionMixer, Mlp, Residual
from zoo.layers.attention.cascaded_group import from_windows, to_windows
from zoo.layers.batch_norm import MapNorm
from zoo.layers.conv import GELUConvNorm
from zoo.registry import Paper, register_model
from zoo.vision.hierarchical import HierarchicalConfig, HierarchicalModel, Run, Stage

torch.fx.wrap("to_windows")
torch.fx.wrap("from_windows")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MambaVisionConfig(HierarchicalConfig):
    """Options of MambaVision."""

    stem_strides: tuple[int, ...] = (2, 2)
    stem_dim: int = 64
    """Channels of the first of the stem's two convolutions."""
    windows: tuple[int, ...] = (0, 0, 14, 7)
    """Side of each stage's windows in features, 0 for a stage of convolutions. No weight depends on it."""
    num_heads: tuple[int, ...]
    """Heads of each stage's attention, 0 for a stage of convolutions."""
    mlp_ratio: float = 4.0
    """Hidden width of the feed-forward layers over the stage's."""
    d_state: int = 8
    """State size of a channel of the scans."""
    layer_scale: float | None = None
    """Initial factor of every branch of the later stages, learned for each channel; None for no factors."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "stem_dim", "d_state")
        self.require_one_each("windows", "num_heads", least=0)
        if len(self.stem_strides) != 2:
            raise ValueError(f"stem_strides must hold 2 strides, got {self.stem_strides}")
        if [window > 0 for window in self.windows] != [heads > 0 for heads in self.num_heads]:
            raise ValueError(
                "windows and num_heads must be 0 for the same stages, those of convolutions, got windows "
                f"{self.windows}, num_heads {self.num_heads}"
            )


class LayerScale(nn.Module):
    """y = gamma x, a factor a channel.

    Paper: Touvron et al., "Going deeper with Image Transformers", arXiv 2103.17239.
    """

    def __init__(self, dim: int, value: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), value))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        return self.gamma * x


class MambaVisionBlock(nn.Module):
    """x + scale1(mixer(norm1(x))), then the same of the feed-forward layer."""

    def __init__(self, dim: int, mixer: nn.Module, mlp_ratio: float, layer_scale: float | None, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.scale1, self.scale2 = (
            nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale) for _ in range(2)
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, dim) -> (B, N, dim)."""
        x = x + self.drop_path(self.scale1(self.mixer(self.norm1(x))))
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))


class WindowedStage(Stage):
    """A stage whose blocks see windows, each a sequence of its own; maps that windows do not cover are padded with
    zeros, which the blocks see and change."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], window: int):
        super().__init__(downsample, blocks)
        self.window = window

    def run_blocks(self, x: Tensor, run: Run) -> Tensor:
        """Map (B, dim, height, width) -> the same shape."""
        height, width = x.shape[2:]
        x = to_windows(x, self.window).flatten(2).mT.contiguous()  # (B windows, N, dim)
        x = super().run_blocks(x, run)
        return from_windows(x.mT.unflatten(2, (self.window, self.window)), height, width)


class MambaVision(HierarchicalModel):
    """Stem, stages of residual convolutions, stages of ``MambaVisionBlock``, batch norm, average pooling, classifier.

    Of a stage's blocks the first half, the middle one included, scans; the others attend.
    """

    config: MambaVisionConfig

    def __init__(self, config: MambaVisionConfig):
        super().__init__(config)
        for module in self.stages.modules():
            if isinstance(module, (Attention, Mlp)):
                for linear in (layer for layer in module.modules() if isinstance(layer, nn.Linear)):
                    nn.init.trunc_normal_(linear.weight, std=0.02)
                    nn.init.zeros_(linear.bias)

    def build_downsample(self, stage: int) -> nn.Module:
        """The stem, or a bare convolution."""
        c = self.config
        if stage:
            return nn.Conv2d(c.dims[stage - 1], c.dims[stage], 3, 2, 1, bias=False)
        first, second = c.stem_strides
        stem = nn.Sequential(
            ConvNorm(c.in_chans, c.stem_dim, 3, first, relu=True), ConvNorm(c.stem_dim, c.dims[0], 3, second, relu=True)
        )
        for layer in stem:
            layer.bn.eps = 1e-4  # type: ignore[union-attr]
        return stem

    def build_block(self, stage: int, index: int, drop_path: float) -> nn.Module:
        """Two convolutions, or a mixer and a feed-forward layer."""
        c, dim = self.config, self.config.dims[stage]
        if not c.windows[stage]:
            convs = GELUConvNorm(dim, dim, 3, bias=True), ConvNorm(dim, dim, 3, bias=True)
            return Residual(nn.Sequential(*convs), drop_path)
        scans = index < (c.depths[stage] + 1) // 2
        mixer = MambaVisionMixer(dim, c.d_state) if scans else Attention(dim, c.num_heads[stage])
        return MambaVisionBlock(dim, mixer, c.mlp_ratio, c.layer_scale, drop_path)

    def build_stage(self, index: int, downsample: nn.Module, blocks: Sequence[nn.Module]) -> Stage:
        """Of maps or of windows."""
        window = self.config.windows[index]
        return WindowedStage(downsample, blocks, window) if window else Stage(downsample, blocks)

    def build_norm(self) -> nn.Module:
        """Batch norm."""
        return MapNorm(self.config.dim)


_register = partial(
    register_model,
    MambaVision,
    task="image-classification",
    family="mambavision",
    paper=Paper("MambaVision: A Hybrid Mamba-Transformer Vision Backbone", "2407.08083", 2024),
)


def _sized(dim: int, depths: tuple[int, ...], heads: int, **options: Any) -> MambaVisionConfig:
    """Widths double from stage to stage; ``heads`` of the third."""
    dims = (dim, 2 * dim, 4 * dim, 8 * dim)
    return MambaVisionConfig(dims=dims, depths=depths, num_heads=(0, 0, heads, 2 * heads), **options)


@_register()
def mambavision_nano():
    return MambaVisionConfig(
        img_size=8, in_chans=1, num_classes=10, mean=(0.305,), std=(0.376,), crop_pct=1.0, stem_strides=(1, 1),
        stem_dim=16, dims=(32, 64), depths=(1, 3), windows=(0, 4), num_heads=(0, 2), mlp_ratio=2.0,
    )  # fmt: skip


@_register()
def mambavision_t():
    return _sized(80, (1, 3, 8, 4), 8, stem_dim=32, crop_pct=1.0)


@_register()
def mambavision_t2():
    return _sized(80, (1, 3, 11, 4), 8, stem_dim=32, crop_pct=0.98)


@_register()
def mambavision_s():
    return _sized(96, (3, 3, 7, 5), 8, crop_pct=0.93)


@_register()
def mambavision_b():
    return _sized(128, (3, 3, 10, 5), 8, layer_scale=1e-5, crop_pct=1.0)


@_register()
def mambavision_l():
    return _sized(196, (3, 3, 10, 5), 16, layer_scale=1e-5, crop_pct=1.0)


@_register()
def mambavision_l2():
    return _sized(196, (3, 3, 12, 5), 16, layer_scale=1e-5, crop_pct=1.0)


@_register()
def mambavision_l3():
    return _sized(256, (3, 3, 20, 10), 16, layer_scale=1e-5, crop_pct=1.0, img_size=256, windows=(0, 0, 16, 8))
