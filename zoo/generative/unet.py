"""U-Nets of residual blocks and transformers: SDXL's, and KOALA's smaller ones.

Papers: Podell et al., "SDXL", arXiv 2307.01952; Lee et al., "KOALA: Self-Attention Matters in Knowledge Distillation of
Latent Diffusion Models for Memory-Efficient and Fast Image Synthesis", arXiv 2312.04005: one pair of residual block and
transformer fewer a stage, shorter transformers, and in the smallest no middle. Tensor names are those of diffusers'
``UNet2DConditionModel``, whose files fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import require_positive
from zoo.generative.diffusion import DiffusionConfig, DiffusionModel, waves
from zoo.layers.attention.reordered import DenseProduct
from zoo.registry import Paper, register_model

TIME_SCALE = 1000.0  # steps of the authors' time
ADDED_WAVES = 256  # of each number that is added


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig(DiffusionConfig):
    """Options of a U-Net."""

    dims: tuple[int, ...] = (320, 640, 1280)
    """Channels of each stage; all but the last halve the resolution."""
    depths: tuple[int, ...] = (0, 2, 10)
    """Blocks of each transformer of a stage; 0 for residual blocks alone."""
    mid_depth: int | None = 10
    """Blocks of the transformer in the middle; None for no middle."""
    num_layers: int = 2
    """Residual blocks of a stage on the way down; one more on the way up."""
    head_dim: int = 64
    """Channels of an attention head."""
    context_dim: int = 2048
    """Width of what cross-attention reads."""
    context_tokens: int = 4
    """Vectors that a class has there."""
    pooled_dim: int | None = None
    """Width of a text's vector that is added to the time with six numbers of sizes and crops; None for no text."""
    norm_groups: int = 32
    """Groups of the group norms."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_layers", "head_dim", "context_dim", "context_tokens", "norm_groups")
        if not self.dims or any(dim % self.norm_groups or dim % self.head_dim for dim in self.dims):
            raise ValueError(
                f"dims must be multiples of norm_groups {self.norm_groups} and head_dim {self.head_dim}, got "
                f"{self.dims}"
            )
        if len(self.depths) != len(self.dims) or min(self.depths) < 0:
            raise ValueError(f"depths must hold {len(self.dims)} integers from 0, one a stage, got {self.depths}")
        for field in ("mid_depth", "pooled_dim"):
            if (value := getattr(self, field)) is not None and value < 1:
                raise ValueError(f"{field} must be positive or None, got {value}")
        if any(side % 2 ** (len(self.dims) - 1) for side in self.image_shape):
            raise ValueError(f"img_size must be a multiple of {2 ** (len(self.dims) - 1)}, got {self.img_size!r}")


class ResnetBlock(nn.Module):
    r"""Two convolutions, between which the time is added.

    .. math:: h = W_1 * \mathrm{silu}(\mathrm{norm}(x)) + W_t \, \mathrm{silu}(t) \\
        y = W_2 * \mathrm{silu}(\mathrm{norm}(h)) + x
    """

    def __init__(self, in_dim: int, dim: int, time_dim: int, norm_groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, in_dim)
        self.conv1 = nn.Conv2d(in_dim, dim, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_dim, dim)
        self.norm2 = nn.GroupNorm(norm_groups, dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_dim, dim, 1) if in_dim != dim else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, in_dim, H, W), time (B, time_dim) -> (B, dim, H, W)."""
        y = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(F.silu(time))[..., None, None]
        return self.conv2(F.silu(self.norm2(y))) + self.conv_shortcut(x)


class Attention(nn.Module):
    r"""Attention of x over a context c, or over itself.

    .. math:: y = W_o \, \mathrm{softmax}(q k^T / \sqrt{d}) \, v, \quad q = W_q x, \; k = W_k c, \; v = W_v c
    """

    def __init__(self, dim: int, context_dim: int, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k, self.to_v = (nn.Linear(context_dim, dim, bias=False) for _ in range(2))
        self.product: nn.Module = DenseProduct()
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (B, T, dim), context (B, S, context_dim) -> (B, T, dim)."""
        context = x if context is None else context
        projected = self.to_q(x), self.to_k(context), self.to_v(context)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in projected)
        return self.to_out[0](self.product(q, k, v).transpose(1, 2).flatten(2))


class GatedGELU(nn.Module):
    """a gelu(b) of the two halves of a linear map."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., hidden_dim)."""
        a, b = self.proj(x).chunk(2, -1)
        return a * F.gelu(b)


class FeedForward(nn.Module):
    """A gated hidden layer of four times the width."""

    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.ModuleList([GatedGELU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention ``attn1``, cross-attention ``attn2``, feed-forward; all residual behind norms."""

    def __init__(self, dim: int, context_dim: int, head_dim: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.attn1 = Attention(dim, dim, head_dim)
        self.attn2 = Attention(dim, context_dim, head_dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, T, dim), context (B, S, context_dim) -> (B, T, dim)."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """Transformer blocks over the pixels of a map, added to it."""

    def __init__(self, dim: int, depth: int, config: UNetConfig):
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_groups, dim, eps=1e-6)
        self.proj_in = nn.Linear(dim, dim)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(dim, config.context_dim, config.head_dim) for _ in range(depth)
        )
        self.proj_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, dim, H, W), context (B, S, context_dim) -> (B, dim, H, W)."""
        y = self.proj_in(self.norm(x).flatten(2).mT)
        for block in self.transformer_blocks:
            y = block(y, context)
        return x + self.proj_out(y).mT.unflatten(2, x.shape[2:])


class Resample(nn.Module):
    """Half the resolution by a convolution, or twice by repeating pixels before one."""

    def __init__(self, dim: int, up: bool):
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(dim, dim, 3, 1 if up else 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, H, W) -> (B, dim, H / 2, W / 2) or (B, dim, 2 H, 2 W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0) if self.up else x)


class Stage(nn.Module):
    """Residual blocks ``resnets``, each with a transformer of ``attentions`` where ``depth`` is not 0, and a change of
    resolution, ``downsamplers`` or ``upsamplers``; all lists. The model runs them."""

    def __init__(self, in_dims: list[int], dim: int, depth: int, config: UNetConfig, **change: nn.Module):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(in_dim, dim, 4 * config.dims[0], config.norm_groups) for in_dim in in_dims
        )
        self.attentions = nn.ModuleList(Transformer(dim, depth, config) for _ in in_dims if depth)
        for name, module in change.items():
            self.add_module(name, nn.ModuleList([module]))


class Middle(nn.Module):
    """A transformer between two residual blocks."""

    def __init__(self, dim: int, depth: int, config: UNetConfig):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(dim, dim, 4 * config.dims[0], config.norm_groups) for _ in range(2))
        self.attentions = nn.ModuleList([Transformer(dim, depth, config)])

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """x (B, dim, H, W) -> the same shape."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x, time), context), time)


class Embedding(nn.Module):
    """W2 silu(W1 x)."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(in_dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_dim) -> (B, dim)."""
        return self.linear_2(F.silu(self.linear_1(x)))


class UNet(DiffusionModel):
    """Stages down, a middle, stages up that read what each block on the way down made.

    A model with classes has an embedding of them for cross-attention; one of texts (num_classes 0) is given its
    context besides.
    """

    config: UNetConfig

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        c, last = config, len(config.dims) - 1
        self.conv_in = nn.Conv2d(c.in_chans, c.dims[0], 3, padding=1)
        self.time_embedding = Embedding(c.dims[0], 4 * c.dims[0])
        if c.pooled_dim is not None:
            self.add_embedding = Embedding(c.pooled_dim + 6 * ADDED_WAVES, 4 * c.dims[0])
        if c.num_classes:
            self.classes = nn.Embedding(c.num_classes + 1, c.context_tokens * c.context_dim)  # the last: none
        skips, before, down = self.skip_dims(), c.dims[0], []
        for index, (dim, depth) in enumerate(zip(c.dims, c.depths, strict=True)):
            change = {"downsamplers": Resample(dim, up=False)} if index < last else {}
            down.append(Stage([before, *[dim] * (c.num_layers - 1)], dim, depth, c, **change))
            before = dim
        self.down_blocks = nn.ModuleList(down)
        if c.mid_depth is not None:
            self.mid_block = Middle(c.dims[-1], c.mid_depth, c)
        up = []
        for index in reversed(range(len(c.dims))):
            dim, entering = c.dims[index], []
            for _ in range(c.num_layers + 1):
                entering.append(before + skips.pop())
                before = dim
            change = {"upsamplers": Resample(dim, up=True)} if index else {}
            up.append(Stage(entering, dim, c.depths[index], c, **change))
        self.up_blocks = nn.ModuleList(up)
        self.conv_norm_out = nn.GroupNorm(c.norm_groups, c.dims[0])
        self.conv_out = nn.Conv2d(c.dims[0], c.in_chans, 3, padding=1)

    def forward(
        self, x: Tensor, t: Tensor | None = None, classes: Tensor | None = None, *,
        context: Tensor | None = None, pooled: Tensor | None = None, sizes: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As of every diffusion model; given a text's context, what ``denoise`` says of it, at time 0 where t is
        None."""
        if context is None:
            return super().forward(x, t, classes)
        return self.denoise(x, x.new_zeros(len(x)) if t is None else t, context, pooled, sizes)

    def skip_dims(self) -> list[int]:
        """Channels of what the way up reads of the way down, as it is made; the last is read first."""
        c = self.config
        depths = [c.num_layers + 1] * (len(c.dims) - 1) + [c.num_layers]  # all but the last stage change the resolution
        return [c.dims[0], *(dim for dim, depth in zip(c.dims, depths, strict=True) for _ in range(depth))]

    def decoder_blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Names and modules of the residual blocks that read it, in the order in which they run."""
        for place, stage in self.up_blocks.named_children():
            for index, block in enumerate(cast(Any, stage).resnets):
                yield f"up_blocks.{place}.resnets.{index}", block

    def velocity(self, x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        """As of ``DiffusionModel``."""
        if not self.config.num_classes:
            raise ValueError("a model of texts needs their context: give context, and pooled and sizes with it")
        context = self.classes(classes).unflatten(1, (self.config.context_tokens, -1))
        return self.denoise(x, t, context)

    def denoise(
        self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor | None = None, sizes: Tensor | None = None
    ) -> Tensor:
        """What the model says of x (B, C, H, W) at times t (B,) from 0 to 1.

        Args:
            context: (B, S, context_dim), of a text or class.
            pooled: (B, pooled_dim), of a text.
            sizes: (B, 6): original size, place of the crop and size of the image, each (height, width).
        """
        time = self.time_embedding(waves(TIME_SCALE * t, self.config.dims[0]))
        if pooled is not None and sizes is not None:
            added = waves(sizes.flatten().to(x.dtype), ADDED_WAVES).view(len(x), -1)
            time = time + self.add_embedding(torch.cat([pooled, added], 1))
        x = self.conv_in(x)
        skips, stages = [x], cast("list[Any]", [*self.down_blocks, *self.up_blocks])
        for stage in stages[: len(self.down_blocks)]:
            for index in range(len(stage.resnets)):
                x = self._layer(stage, index, x, time, context)
                skips.append(x)
            for change in getattr(stage, "downsamplers", ()):
                x = change(x)
                skips.append(x)
        if self.config.mid_depth is not None:
            x = self._run(self.mid_block, x, time, context)
        for stage in stages[len(self.down_blocks) :]:
            for index in range(len(stage.resnets)):
                x = self._layer(stage, index, torch.cat([x, skips.pop()], 1), time, context)
            for change in getattr(stage, "upsamplers", ()):
                x = change(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def _layer(self, stage: Any, index: int, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """Residual block ``index`` of a stage and its transformer."""
        x = self._run(stage.resnets[index], x, time)
        return self._run(stage.attentions[index], x, context) if len(stage.attentions) else x


_register = partial(
    register_model, UNet, task="image-diffusion", family="unet",
    paper=Paper(
        "KOALA: Self-Attention Matters in Knowledge Distillation of Latent Diffusion Models for Memory-Efficient and "
        "Fast Image Synthesis", "2312.04005", 2023,
    ),
)  # fmt: skip
_texts = partial(UNetConfig, img_size=128, in_chans=4, num_classes=0, pooled_dim=1280, mean=(0.0,) * 4, std=(1.0,) * 4)


@_register()
def unet_nano():
    return UNetConfig(
        mean=(0.305,), std=(0.376,), dims=(32, 48), depths=(0, 2), mid_depth=2, num_layers=1, head_dim=16,
        context_dim=32, norm_groups=8,
    )  # fmt: skip


@_register(
    paper=Paper("SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis", "2307.01952", 2023)
)
def sdxl_unet():
    return _texts()


@_register()
def koala_1b():
    return _texts(num_layers=1, depths=(0, 2, 6), mid_depth=6)


@_register()
def koala_700m():
    return _texts(num_layers=1, depths=(0, 2, 5), mid_depth=None)
