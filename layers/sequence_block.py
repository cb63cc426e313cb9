"""The residual blocks of the sequence classifiers, and their batch norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.kernels.dispatch import compute_dtype
from zoo.layers.batch_norm import BatchNorm1d
from zoo.layers.drop import DropPath
from zoo.layers.mlp import Mlp


class SequenceNorm(BatchNorm1d):
    """Batch norm of each channel over all positions of all sequences, padding left out."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """x (B, T, dim), and mask (B, T), False where there is padding -> (B, T, dim)."""
        if mask is None or not self.training:
            return super().forward(x.flatten(0, 1)).view_as(x)
        wide = x.to(compute_dtype(x))
        weight = mask[..., None].to(wide.dtype)
        count = weight.sum().clamp(min=2)
        mean = (wide * weight).sum((0, 1)) / count
        variance = ((wide - mean).square() * weight).sum((0, 1)) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        return ((wide - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum or 0.0)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum or 0.0)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1


class SequenceBlock(nn.Module):
    """x + branch(norm(x)), or norm(x + branch(x)), where branch is a mixer, dropout and stochastic depth.

    Args:
        dim: model width.
        mixer: (B, T, dim) -> (B, T, dim); padding is 0 in what it reads.
        norm: dim -> the norm: a batch norm, or ``nn.LayerNorm``.
        prenorm: norm before the mixer, or (False) after the sum.
        drop_rate: dropout after the mixer.
        drop_path: rate of leaving the branch out.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        *,
        norm: Callable[[int], nn.Module] = SequenceNorm,
        prenorm: bool = True,
        drop_rate: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.before = norm(dim) if prenorm else nn.Identity()
        self.mixer = mixer
        self.drop = nn.Dropout(drop_rate)
        self.drop_path = DropPath(drop_path)
        self.after = nn.Identity() if prenorm else norm(dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, T, dim), and mask (B, T), False where there is padding, which changes nothing elsewhere -> as x."""
        y = normalised(self.before, x, mask)
        if mask is not None:
            y = y.masked_fill(~mask[..., None], 0)
        return normalised(self.after, x + self.drop_path(self.drop(self.mixer(y))), mask)


class EncoderBlock(nn.Module):
    """x + mixer(norm(x)), then x + mlp(mlp_norm(x)), with layer norms and GELU.

    Args:
        dim: model width.
        mixer: (B, T, dim) and what it reads besides, as the mask (B, T), False at padding -> (B, T, dim).
        mlp_dim: hidden units of the MLP.
        drop_rate: dropout after the mixer and in the MLP.
    """

    def __init__(self, dim: int, mixer: nn.Module, mlp_dim: int, drop_rate: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = mixer
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_dim, drop_rate)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor, context: Any) -> Tensor:
        """x (B, T, dim), and what the mixer reads besides -> (B, T, dim)."""
        x = x + self.drop(self.mixer(self.norm(x), context))
        return x + self.mlp(self.mlp_norm(x))


def normalised(norm: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The norm of x; a batch norm leaves padding out."""
    return norm(x, mask) if isinstance(norm, SequenceNorm) else norm(x)
