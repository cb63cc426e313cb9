"""Frames to vectors and back, by convolutions that halve and double the side."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """Convolutions, batch norms and SiLU, the first at full size and each further one at half of the last.

    Args:
        in_chans: channels of a frame.
        widths: channels after each convolution.
        kernel_size: odd.
    """

    def __init__(self, in_chans: int, widths: tuple[int, ...], kernel_size: int):
        super().__init__()
        layers: list[nn.Module] = []
        for index, (before, width) in enumerate(zip((in_chans, *widths), widths, strict=False)):
            conv = nn.Conv2d(before, width, kernel_size, stride=2 if index else 1, padding=kernel_size // 2)
            layers += [conv, nn.BatchNorm2d(width), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.layers.apply(init_truncated)

    def forward(self, frames: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, width H' W')."""
        return self.layers(frames).flatten(1)


class Decoder(nn.Module):
    """Codes to a small image, and transposed convolutions that double its side up to the last; then a sigmoid.

    Args:
        code_dim: numbers of a code.
        in_chans, widths, kernel_size: of the encoder.
        side: of the encoder's last image.
    """

    def __init__(self, code_dim: int, in_chans: int, widths: tuple[int, ...], kernel_size: int, side: int):
        super().__init__()
        self.shape = (widths[-1], side, side)
        self.stem = nn.Linear(code_dim, math.prod(self.shape))
        layers: list[nn.Module] = [nn.BatchNorm2d(widths[-1]), nn.SiLU()]
        for before, width in zip(reversed(widths), reversed(widths[:-1]), strict=False):
            conv = nn.ConvTranspose2d(before, width, kernel_size, stride=2, padding=kernel_size // 2, output_padding=1)
            layers += [conv, nn.BatchNorm2d(width), nn.SiLU()]
        layers.append(nn.ConvTranspose2d(widths[0], in_chans, kernel_size, padding=kernel_size // 2))
        self.layers = nn.Sequential(*layers)
        self.apply(init_truncated)

    def forward(self, codes: Tensor) -> Tensor:
        """(N, code_dim) -> (N, C, H, W) in (0, 1)."""
        small = self.stem(codes).view(len(codes), *self.shape)
        return self.layers(small.contiguous(memory_format=torch.channels_last)).sigmoid()  # faster on the CPU


def init_truncated(module: nn.Module) -> None:
    """Weights of a linear layer or a convolution from a normal distribution cut at two standard deviations, of the
    variance one over the mean of what goes in and out; biases 0."""
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        area = 1 if isinstance(module, nn.Linear) else math.prod(module.kernel_size)
        ends = (module.weight.shape[0] + module.weight.shape[1]) * area
        std = math.sqrt(2 / ends) / 0.87962566103423978  # of what the cut leaves of a unit normal distribution
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
