"""MemoryFormer's layers: tables in place of matrices, which the signs of the input index."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.kernels import hashed_lookup
from zoo.layers.attention.causal import CausalAttention
from zoo.layers.attention.keys import Place
from zoo.layers.attention.rotary import Rotary
from zoo.layers.attention.state import KeyValueState
from zoo.layers.options import require_above, require_at_least

WEIGHTS = ("probability", "scaled")


class MemoryLayer(nn.Module):
    r"""In place of a linear layer: of each part of the input its signs choose a row of a table, and its size a weight.

    .. math::
        y = b + \sum_k p(z_k / t) \, T_k[h(z_k)], \quad h(z) = \sum_i 2^{\tau - 1 - i} [z_i \ge 0], \quad
        p(z) = \prod_i \frac{1}{1 + e^{-2 |z_i|}}

    where z_k are the K = dim / tau parts of x. No matrix multiplies x: a token costs K (tau + out_dim) operations, and
    the tables hold 2^tau K out_dim numbers. The codes have no gradient, x learns through p alone.

    Args:
        dim: width of x.
        out_dim: width of y.
        bits: tau.
        weight: "probability" (the paper's p) or "scaled" (the released code's, |z|_1 p).
        temperature: t.

    Raises:
        ValueError: for bits that do not divide dim, an unknown weight, or a temperature that is not above 0.

    Paper: Ding et al., "MemoryFormer", arXiv 2411.12992, section 3; initial values of the authors' code.
    """

    def __init__(self, dim: int, out_dim: int, bits: int, weight: str = "probability", temperature: float = 1.0):
        super().__init__()
        require_at_least(1, dim=dim, out_dim=out_dim, bits=bits)
        require_above(0, temperature=temperature)
        if dim % bits:
            raise ValueError(f"bits must divide dim, got bits {bits} and dim {dim}")
        if weight not in WEIGHTS:
            raise ValueError(f"weight must be one of {WEIGHTS}, got {weight!r}")
        self.bits, self.weight, self.temperature = bits, weight, temperature
        self.tables = nn.Parameter(0.02 * torch.randn(dim // bits, 2**bits, out_dim))
        self.bias = nn.Parameter(0.001 * torch.randn(out_dim))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., out_dim), in the dtype of the tables."""
        y = hashed_lookup(x, self.tables, temperature=self.temperature, scaled=self.weight == "scaled")
        return y + self.bias


class MemoryBlock(nn.Module):
    """In place of a feed-forward layer: a memory layer, a layer norm and a memory layer with more bits a table.

    Args:
        dim: model width.
        bits: of the first layer's tables.
        extra_bits: that the second layer's have more, of as many tables.
        options: ``weight`` and ``temperature`` of the layers.

    Paper: Ding et al., "MemoryFormer", arXiv 2411.12992, section 3.3.
    """

    def __init__(self, dim: int, bits: int, extra_bits: int = 2, **options: Any):
        super().__init__()
        hidden = dim // bits * (bits + extra_bits)
        self.fc1 = MemoryLayer(dim, hidden, bits, **options)
        self.norm = nn.LayerNorm(hidden)
        self.fc2 = MemoryLayer(hidden, dim, bits + extra_bits, **options)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        return self.fc2(self.norm(self.fc1(x)))


class HashedAttention(CausalAttention):
    """Causal attention whose queries, keys and values come from tables that one hash indexes; no output projection.

    Args:
        dim: model width.
        num_heads: heads, which divide it.
        bits: of the tables.
        rotary_fraction: part of a head's channels that turn with the position.
        options: ``weight`` and ``temperature`` of the ``MemoryLayer``.

    Paper: Ding et al., "MemoryFormer", arXiv 2411.12992, section 3.2.
    """

    def __init__(self, dim: int, num_heads: int, bits: int, rotary_fraction: float = 0.25, **options: Any):
        turning = max(2, 2 * int(rotary_fraction * (dim // max(1, num_heads)) / 2))
        super().__init__(dim, num_heads, rotary=Rotary(turning))
        self.qkv_memory = MemoryLayer(dim, 3 * dim, bits, **options)
        self.out_proj = nn.Identity()  # type: ignore[assignment]

    def build_projections(self, dim: int, bias: bool) -> None:
        """None: see ``qkv_memory``."""

    def forward(self, x: Tensor, state: KeyValueState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        place = Place.of(x, state, seq_idx)
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)) for t in self.qkv_memory(x).chunk(3, dim=-1))
        q, k = self.rotated(place.position, q, k)  # (B, T, H, d)
        y = self.mix(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), place, state)
        return y.transpose(1, 2).flatten(2)
