"""A small network on what a decoder reads of its encoder (SCEdit)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.adapt.marks import device_of


class SkipTuner(nn.Module):
    r"""A block of a decoder that reads [h, s], of which the skip s goes through a tuner first.

    .. math:: y = \mathrm{block}([h, \; s + \lambda \, (W_2 \, \mathrm{gelu}(W_1 s + b_1) + b_2)])

    W_2 and b_2 are 0 at first, so that nothing changes; W_1 and W_2 are of each pixel. It is a function of s that no
    weight of the block has, so it cannot be merged: the tuned model keeps it, and lambda says how much of it acts.

    Args:
        block: called with (B, channels, H, W) and whatever follows, frozen.
        channels: of s, the last ones of what comes in.
        width: rows of W_1.
        scale: lambda.
        like: whose device and dtype it has.

    Paper: Jiang et al., "SCEdit: Efficient and Controllable Image Diffusion Generation via Skip Connection Editing",
    arXiv 2312.11392 (SC-Tuner).
    """

    def __init__(self, block: nn.Module, channels: int, width: int, scale: float, like: Tensor):
        super().__init__()
        self.block, self.channels, self.scale = block, channels, scale
        place = {"device": device_of(like), "dtype": like.dtype}
        self.down, self.up = nn.Conv2d(channels, width, 1, **place), nn.Conv2d(width, channels, 1, **place)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, *args: Tensor) -> Tensor:
        """x (B, C, H, W), the skip its last channels -> what the block makes of it."""
        h, skip = x.tensor_split([x.shape[1] - self.channels], 1)
        return self.block(torch.cat([h, skip + self.scale * self.up(F.gelu(self.down(skip)))], 1), *args)
