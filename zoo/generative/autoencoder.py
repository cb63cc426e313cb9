"""Convolutional encoders and decoders of images, by the names of WeTok's files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Run = Callable[..., Tensor]


class ResBlock(nn.Module):
    """conv(silu(norm(conv(silu(norm(x)))))) + x, the input mixed linearly where the width changes."""

    def __init__(self, in_dim: int, out_dim: int, norm_groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, in_dim, eps=1e-6)
        self.norm2 = nn.GroupNorm(norm_groups, out_dim, eps=1e-6)
        self.conv1 = nn.Conv2d(in_dim, out_dim, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False)
        self.nin_shortcut = nn.Conv2d(in_dim, out_dim, 1, bias=False) if in_dim != out_dim else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_dim, H, W) -> (B, out_dim, H, W)."""
        y = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(y))) + self.nin_shortcut(x)


class Upsample(nn.Module):
    """Twice the resolution: a convolution to four times the channels, of which each fourth is one of the new pixels."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(dim, 4 * dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, H, W) -> (B, dim, 2 H, 2 W)."""
        y = self.conv1(x).unflatten(1, (2, 2, -1)).permute(0, 3, 4, 1, 5, 2)  # (B, dim, H, row, W, column)
        return y.flatten(4).flatten(2, 3)


class AdaptiveGroupNorm(nn.Module):
    """A group norm whose scale is a linear map of the codes' spread over the image, and its shift of their mean."""

    def __init__(self, code_dim: int, dim: int, norm_groups: int):
        super().__init__()
        self.gn = nn.GroupNorm(norm_groups, dim, eps=1e-6, affine=False)
        self.gamma = nn.Linear(code_dim, dim)
        self.beta = nn.Linear(code_dim, dim)

    def forward(self, x: Tensor, q: Tensor) -> Tensor:
        """x (B, dim, H, W), codes q (B, code_dim, h, w) -> (B, dim, H, W)."""
        flat = q.flatten(2)
        mean = flat.mean(-1)
        variance = (flat - mean[..., None]).square().sum(-1) / max(1, flat.shape[-1] - 1)
        spread = (variance + self.gn.eps).sqrt()
        return self.gamma(spread)[..., None, None] * self.gn(x) + self.beta(mean)[..., None, None]


class Level(nn.Module):
    """Residual blocks of one resolution, and what leads to the next, ``downsample`` or ``upsample``."""

    def __init__(self, in_dim: int, dim: int, num_blocks: int, norm_groups: int, **change: nn.Module):
        super().__init__()
        self.block = nn.ModuleList(ResBlock(dim if i else in_dim, dim, norm_groups) for i in range(num_blocks))
        for name, module in change.items():
            self.add_module(name, module)
        self.change = tuple(change)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_dim, H, W) -> (B, dim, H', W')."""
        for block in self.block:
            x = block(x)
        for name in self.change:
            x = getattr(self, name)(x)
        return x


class Encoder(nn.Module):
    """Images to latents: levels of falling resolution, blocks in the middle, a 1x1 convolution.

    Args:
        in_chans: channels of the images.
        dims: width of each level; all but the last halve the resolution.
        num_blocks: residual blocks of a level and in the middle.
        out_dim: channels of the latents.
        norm_groups: of the group norms.
    """

    def __init__(self, in_chans: int, dims: Sequence[int], num_blocks: int, out_dim: int, norm_groups: int):
        super().__init__()
        last, widths = len(dims) - 1, [dims[0], *dims]
        first = dims[0]
        self.conv_in = nn.Conv2d(in_chans, first, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            Level(
                widths[i], dim, num_blocks, norm_groups,
                **({"downsample": nn.Conv2d(dim, dim, 3, 2, 1)} if i < last else {}),
            )
            for i, dim in enumerate(dims)
        )  # fmt: skip
        self.mid_block = nn.ModuleList(ResBlock(dims[-1], dims[-1], norm_groups) for _ in range(num_blocks))
        self.norm_out = nn.GroupNorm(norm_groups, dims[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(dims[-1], out_dim, 1)

    def forward(self, x: Tensor, run: Run) -> Tensor:
        """Images (B, in_chans, H, W) -> (B, out_dim, h, w); ``run(layer, x)`` is how each level is called."""
        x = self.conv_in(x)
        for layer in (*self.down, *self.mid_block):
            x = run(layer, x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Codes to images: the encoder in reverse, each level begun by an ``AdaptiveGroupNorm``.

    Args:
        code_dim: channels of the codes.
        noise: it reads as many channels of noise beside the codes, with weights that start at 0.
        others: as of ``Encoder``.
    """

    def __init__(
        self, code_dim: int, dims: Sequence[int], num_blocks: int, out_chans: int, norm_groups: int, noise: bool
    ):
        super().__init__()
        self.noise = noise
        self.conv_in = nn.Conv2d(code_dim * (1 + noise), dims[-1], 3, padding=1)
        if noise:
            nn.init.zeros_(self.conv_in.weight[:, code_dim:])
        self.mid_block = nn.ModuleList(ResBlock(dims[-1], dims[-1], norm_groups) for _ in range(num_blocks))
        before = [*dims[1:], dims[-1]]
        self.up = nn.ModuleList(
            Level(before[i], dim, num_blocks, norm_groups, **({"upsample": Upsample(dim)} if i else {}))
            for i, dim in enumerate(dims)
        )
        self.adaptive = nn.ModuleList(AdaptiveGroupNorm(code_dim, dim, norm_groups) for dim in before)
        self.norm_out = nn.GroupNorm(norm_groups, dims[0], eps=1e-6)
        self.conv_out = nn.Conv2d(dims[0], out_chans, 3, padding=1)

    def forward(self, q: Tensor, noise: Tensor | None, run: Run) -> Tensor:
        """Codes and perhaps noise, (B, code_dim, h, w) both -> images (B, out_chans, H, W)."""
        x = self.conv_in(q if noise is None else torch.cat([q, noise], 1))
        for layer in self.mid_block:
            x = run(layer, x)
        for norm, layer in zip(reversed(self.adaptive), reversed(self.up), strict=True):
            x = run(layer, norm(x, q))
        return self.conv_out(F.silu(self.norm_out(x)))
