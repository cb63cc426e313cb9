"""Normalisation over the last axis."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.rms_norm import rms_norm
from zoo.layers.linear import is_watched
from zoo.layers.options import require_at_least


class RMSNorm(nn.Module):
    """y = weight * x / sqrt(mean(x^2) + eps), computed in float32 and returned in the dtype of the weight.

    Paper: Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467.
    """

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        require_at_least(0, eps=eps)
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        return rms_norm(x, self.weight, eps=self.eps)


class JointRMSNorm(RMSNorm):
    """RMSNorm over the channels of all heads together."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., H, d), H d = dim -> (..., H, d)."""
        return super().forward(x.flatten(-2)).view_as(x)


class OffsetRMSNorm(RMSNorm):
    """y = (1 + weight) * x / sqrt(mean(x^2) + eps), the sum in float32: weight decay draws the factor to 1, not to 0.

    Source: the published code of Gemma, arXiv 2403.08295.
    """

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__(dim, eps)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        factor = 1 + self.weight.to(compute_dtype(self.weight))
        return rms_norm(x, factor, eps=self.eps).to(self.weight.dtype)


class PlainRMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps), computed in float32, without a weight."""

    def __init__(self, eps: float = 1e-5):
        super().__init__()
        require_at_least(0, eps=eps)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim), of any dim."""
        return rms_norm(x, eps=self.eps)


class ScaleNorm(nn.Module):
    """y = weight * x / sqrt(mean(x^2) + eps), with one weight for all channels, as in Mega."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        require_at_least(0, eps=eps)
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        return rms_norm(x, self.weight.expand(self.dim), eps=self.eps)


class GatedRMSNorm(nn.Module):
    """RMSNorm of x * silu(z), over each of ``num_groups`` parts of the channels (Mamba-2)."""

    def __init__(self, dim: int, num_groups: int = 1, eps: float = 1e-5):
        super().__init__()
        require_at_least(0, eps=eps)
        if num_groups < 1 or dim % num_groups:
            raise ValueError(f"num_groups must divide dim: got dim {dim}, num_groups {num_groups}")
        self.weight = nn.Parameter(torch.ones(dim))
        self.num_groups = num_groups
        self.eps = eps

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x and gate z (..., dim) -> (..., dim)."""
        return rms_norm(x, self.weight, z=z, num_groups=self.num_groups, eps=self.eps)


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last axis, computed in float32 and returned in the dtype of the weight."""

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True):
        super().__init__(dim, eps, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        wide = compute_dtype(x)
        bias = None if self.bias is None else self.bias.to(wide)
        y = F.layer_norm(x.to(wide), self.normalized_shape, self.weight.to(wide), bias, self.eps)
        return y.to(self.weight.dtype)


class HeadNorm(nn.GroupNorm):
    """Layer norm over each of ``num_groups`` parts of the last axis, in float32; returned in the dtype of x."""

    def __init__(self, num_groups: int, dim: int, eps: float = 1e-5, bias: bool = True):
        super().__init__(num_groups, dim, eps)
        if not bias:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        wide = compute_dtype(x)
        rows, weight = x.reshape(-1, self.num_channels).to(wide), self.weight.to(wide)
        bias = None if self.bias is None else self.bias.to(wide)
        return F.group_norm(rows, self.num_groups, weight, bias, self.eps).to(x.dtype).view(x.shape)


def gated(norm: nn.Module, x: Tensor, z: Tensor) -> Tensor:
    """norm(x) * silu(z) of tensors (..., dim): in one pass, or by a call of ``norm`` where that is no RMSNorm or a hook
    is on it."""
    if type(norm) is RMSNorm and not is_watched(norm):
        return rms_norm(x, norm.weight, z=z.to(x.dtype), norm_before_gate=True, eps=norm.eps)
    x = norm(x)
    return x * F.silu(z.to(compute_dtype(z))).to(x.dtype)
