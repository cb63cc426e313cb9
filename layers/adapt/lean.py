"""Inverted residuals that keep little for the backward pass (MobileTL)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.batch_norm import BatchNorm2d
from zoo.layers.conv import InvertedResidual, ReLU6ConvNorm
from zoo.layers.recast import recast

BITS = 8


class LeanInvertedResidual(InvertedResidual):
    """An ``InvertedResidual`` whose two inner norms learn their shift alone and whose activations keep a bit a number;
    outputs are those of the block with inner norms in eval mode.

    Paper: Chiang et al., "MobileTL: On-device Transfer Learning with Inverted Residual Blocks", arXiv 2212.03246.
    """

    @classmethod
    def of(cls, block: InvertedResidual) -> LeanInvertedResidual:
        """The same block, of the same parts."""
        made = recast(block, cls)
        for name in ("expand", "depthwise"):
            if isinstance(part := getattr(block, name), ReLU6ConvNorm):
                setattr(made, name, recast(part, LeanConvNorm))
        return made

    def plain(self) -> InvertedResidual:
        """The block that it was made of."""
        made = recast(self, InvertedResidual)
        for name in ("expand", "depthwise"):
            if isinstance(part := getattr(self, name), LeanConvNorm):
                setattr(made, name, recast(part, ReLU6ConvNorm))
        return made


class LeanConvNorm(ReLU6ConvNorm):
    r"""y = relu6(bn(conv(x))) with the norm's statistics and scale as they are, in training too.

    .. math:: dz = dy \, [y > 0], \quad d\beta = \sum dz, \quad dx = dz \, \gamma / \sigma

    which takes the ReLU6 for a ReLU, as the paper does, so that one bit tells.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_dim, H, W) -> (B, out_dim, ceil(H / stride), ceil(W / stride))."""
        bn: BatchNorm2d = self.bn
        return _NormReLU6.apply(self.conv(x), bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.eps)  # type: ignore[return-value]


class _NormReLU6(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        y = F.relu6(F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), inplace=True)
        ctx.save_for_backward(packed(y > 0), weight * (var + eps).rsqrt())
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (dy,), (bits, scale) = gradients, ctx.saved_tensors
        dz = dy * unpacked(bits, dy.shape)
        dx = (dz * scale[:, None, None]).to(dy.dtype) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, dz.sum((0, 2, 3)).to(scale.dtype), None


def packed(mask: Tensor) -> Tensor:
    """A boolean tensor as bytes of eight (ceil(n / 8),)."""
    bits = F.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % BITS)).view(-1, BITS)
    return (bits << torch.arange(BITS, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def unpacked(found: Tensor, shape: torch.Size) -> Tensor:
    """The boolean tensor of that shape that ``packed`` made bytes of."""
    bits = found[:, None] >> torch.arange(BITS, dtype=torch.uint8, device=found.device)
    return (bits & 1).bool().flatten()[: shape.numel()].view(shape)


def blocks(model: nn.Module) -> dict[str, InvertedResidual]:
    """Names and modules of the inverted residuals of a model, in order."""
    return {name: module for name, module in model.named_modules() if type(module) is InvertedResidual}
