"""Noise of the size that rounding to a few bits would have, for weights that learn to bear it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MODULUS = 2**63 - 25  # a prime


class WeightNoise(nn.Module):
    r"""A weight plus rounded normal noise in training mode, the weight itself in evaluation.

    .. math::
        \hat W = W + R \, 2^{1 - b} \max_{\text{block}} |W|, \quad R = \mathrm{round}(z / 2), \; z \sim N(0, 1), \quad
        b = b_{target} + p \, (b_{start} - b_{target})

    R is 0 two times in three and otherwise mostly -1 or 1; the gradient of W passes straight through. p is learnt, of
    each block, from 1 on; weight decay takes it to 0, where the noise is that of ``target`` bits. Every step has other
    draws, which follow from the seed and the steps so far alone: what is recomputed, resumed or computed elsewhere
    sees the same, and accumulated batches share them.

    Args:
        weight: matrices (..., N, C), or more axes whose first is the rows (``flatten``).
        start, target: b at p = 1 and at p = 0.
        block: rows and columns that share a maximum and a b; at the edges they are cut off.
        seed: of the draws.

    Paper: "Gaussian Weight Sampling for Scalable, Efficient and Stable Pseudo-Quantization Training", a step's noise by
    R and b for each block; how b moves from its start to its target is not known to us beyond that it is learnt and
    decays.
    """

    steps: Tensor

    def __init__(self, weight: Tensor, start: float, target: float, block: int, seed: int, flatten: bool):
        super().__init__()
        self.start, self.target, self.block, self.seed, self.flatten = start, target, block, seed, flatten
        *stack, rows, columns = (weight.flatten(1) if flatten else weight).shape
        shape = (*stack, -(-rows // block), -(-columns // block))
        device = None if weight.is_meta else weight.device  # where a checkpoint's tensors will come
        self.share = nn.Parameter(torch.ones(shape, dtype=torch.float32, device=device))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))

    @property
    def bits(self) -> Tensor:
        """b of each block."""
        return self.target + self.share.clamp(min=0) * (self.start - self.target)

    def forward(self, weight: Tensor) -> Tensor:
        """Of the shape and dtype of the weight."""
        return weight + self.noise(weight) if self.training else weight

    def noise(self, weight: Tensor) -> Tensor:
        """This step's, in the dtype of the weight; with a gradient for p alone."""
        w = weight.detach()
        w = w.flatten(1) if self.flatten else w
        largest = F.max_pool2d(w.abs().float().flatten(0, -3)[:, None] if w.dim() > 2 else w.abs().float()[None, None],
                               self.block, ceil_mode=True).view(self.share.shape)  # fmt: skip
        size = largest * 2 ** (1 - self.bits)
        each = size.repeat_interleave(self.block, -2)[..., : w.shape[-2], :]
        each = each.repeat_interleave(self.block, -1)[..., : w.shape[-1]]
        return (self.drawn(w.shape, weight.device) * each).view(weight.shape).to(weight.dtype)

    def drawn(self, shape: torch.Size, device: torch.device) -> Tensor:
        """R of this step, float32."""
        generator = torch.Generator(device).manual_seed((self.seed * 1_000_003 + int(self.steps)) % MODULUS)
        return (torch.randn(shape, generator=generator, device=device) / 2).round()

    def after_step(self) -> None:
        """Other draws from now on; see ``zoo.after_step``."""
        self.steps = self.steps + 1

    def extra_repr(self) -> str:
        """Bits and block."""
        return f"{self.start} to {self.target} bits, blocks of {self.block}"
