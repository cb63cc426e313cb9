"""Rotary positions as a layer of their own: which channels turn, and how fast."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.rope import rope
from zoo.layers.attention.scaling import RotaryScaling


class Rotary(nn.Module):
    r"""Turns the first ``dim`` channels of every head, in P = dim / 2 pairs, by angles that grow with the position.

    .. math::
        \theta_{t,i} = t f_i, \quad f_i = \mathrm{base}^{-i/P}

    The frequencies f are computed once, in float64, and anew where the module is moved or cast: they are never rounded
    to less than float32, and are no part of a state dict.

    Args:
        dim: channels that turn, even; a head may have more.
        base: wavelength base.
        scaling: of the frequencies, for longer contexts.
        interleaved: pair i is the channels (2i, 2i + 1), as in the paper, instead of (i, i + P), as in GPT-NeoX.

    Raises:
        ValueError: for a dim that is odd or below 2.

    Paper: Su et al., "RoFormer", arXiv 2104.09864.
    """

    frequency: Tensor

    def __init__(
        self, dim: int, base: float = 10000.0, *, scaling: RotaryScaling | None = None, interleaved: bool = False
    ):
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"rotary positions turn channels in pairs: dim must be even and at least 2, got {dim}")
        self.dim, self.base, self.scaling, self.interleaved = dim, base, scaling, interleaved
        self.register_buffer("frequency", self.frequencies(torch.empty(0)), persistent=False)

    def forward(self, positions: Tensor, *heads: Tensor) -> tuple[Tensor, ...]:
        """Queries or keys (B, T, H, d) turned by their positions (T,) or (B, T)."""
        cos, sin = self.tables(positions)
        return tuple(rope(one, cos, sin, interleaved=self.interleaved) for one in heads)

    def shifted(self, heads: Tensor, by: Tensor) -> Tensor:
        """Turned queries or keys (B, H, T, d) as they are ``by`` (B, 1 or H, T) positions later."""
        angle = by[..., None] * self.frequency
        one = by.shape[1] == 1
        cos, sin = (table[:, 0] if one else table.flatten(0, 1) for table in (angle.cos(), angle.sin()))
        turned = heads.transpose(1, 2) if one else heads.flatten(0, 1)[:, :, None]
        turned = rope(
            turned, cos.expand(len(turned), -1, -1), sin.expand(len(turned), -1, -1), interleaved=self.interleaved
        )
        return turned.transpose(1, 2) if one else turned[:, :, 0].unflatten(0, heads.shape[:2])

    def tables(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (..., P) of the angles at positions (...), float32 or wider."""
        if self.frequency.is_meta and not positions.is_meta:  # built without memory, and given parameters alone since
            self.frequency = self.frequencies(torch.empty_like(self.frequency, device=positions.device))
        angle = positions[..., None] * self.frequency
        scale = 1.0 if self.scaling is None else self.scaling.rotation_scale
        return (angle.cos(), angle.sin()) if scale == 1 else (angle.cos() * scale, angle.sin() * scale)

    def frequencies(self, like: Tensor) -> Tensor:
        """f (P,), where ``like`` is and of its dtype, or float32 where that is narrower."""
        pairs = self.dim // 2
        frequency = self.base ** (-torch.arange(pairs, dtype=torch.float64, device="cpu") / pairs)
        if self.scaling is not None:
            frequency = self.scaling.frequencies(frequency, self.base)
        return frequency.to(like.device, compute_dtype(like))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        super()._apply(fn, recurse)
        self.frequency = self.frequencies(self.frequency)
        return self
