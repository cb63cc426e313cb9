"""Attention over tokens of a grid, each head in an order of its own, between blocks that a mask names."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.block_sparse_attention import block_sparse_attention


class DenseProduct(nn.Module):
    """Softmax attention of q over k, applied to v: what stands between the projections of an attention layer."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """q, k, v (B, H, T, K), mask (T, S) bool -> (B, H, T, K)."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class ReorderedProduct(nn.Module):
    r"""The same over tokens that are put in another order for each head, within blocks that are not skipped.

    .. math:: y = P^{-1} \, \mathrm{attention}_M(P q, P k, P v)

    With a whole mask M that is attention as it was, for any P: softmax knows no order. Positions are in q and k before.

    Args:
        num_heads: H.
        length: T, of queries and keys.
        block_size: tokens of a block; the last may be shorter.
        bits: None: numbers as they are. Otherwise each block of q, k and v is rounded to integers of so many bits with
            one scale, and so is each block of the weights; this is emulated with all weights in memory.

    Attributes:
        order: (H, T) int64: which token of the grid is at each place; at first each its own.
        seen: (H, n, n) bool, M: block of queries, block of keys; at first all.

    Paper: Zhao et al., "PAROAttention: Pattern-Aware ReOrdering for Efficient Sparse and Quantized Attention in Visual
    Generation Models", arXiv 2506.16054.
    """

    order: Tensor
    seen: Tensor

    def __init__(self, num_heads: int, length: int, block_size: int, bits: int | None = None):
        super().__init__()
        blocks = -(-length // block_size)
        self.block_size, self.bits = block_size, bits
        self.register_buffer("order", torch.arange(length).expand(num_heads, -1).clone())
        self.register_buffer("seen", torch.ones(num_heads, blocks, blocks, dtype=torch.bool))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """q, k, v (B, H, T, K) -> (B, H, T, K).

        Raises:
            ValueError: for another number of tokens, or a mask.
        """
        length = self.order.shape[1]
        if mask is not None or q.shape[2] != length or k.shape[2] != length:
            raise ValueError(
                f"a reordered attention is over {length} tokens without a mask, got {q.shape[2]} queries, {k.shape[2]} "
                f"keys and {'no' if mask is None else 'a'} mask"
            )
        q, k, v = (placed(x, self.order) for x in (q, k, v))
        if self.bits is None:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            y = block_sparse_attention(q, k, v, self.seen[None], block_size=self.block_size).transpose(1, 2)
        else:
            y = self._rounded(q, k, v, self.bits)
        return placed(y, self.order.argsort(-1))

    @property
    def density(self) -> Tensor:
        """Share (H,) of the blocks that are not skipped."""
        return self.seen.flatten(1).float().mean(1)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{tuple(self.order.shape)}, block_size={self.block_size}, bits={self.bits}"

    def _rounded(self, q: Tensor, k: Tensor, v: Tensor, bits: int) -> Tensor:
        size, length = self.block_size, q.shape[2]
        q, k, v = (block_rounded(x, (size, x.shape[-1]), bits) for x in (q, k, v))
        seen = self.seen.repeat_interleave(size, 1).repeat_interleave(size, 2)[:, :length, :length]
        scores = (q @ k.mT) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return block_rounded(weights, (size, size), bits, positive=True) @ v


def placed(x: Tensor, order: Tensor) -> Tensor:
    """Tokens of x (B, H, T, K) in an order (H, T)."""
    return x.gather(2, order[None, :, :, None].expand(len(x), -1, -1, x.shape[-1]))


def block_rounded(x: Tensor, block: tuple[int, int], bits: int, positive: bool = False) -> Tensor:
    """x (..., N, C) with each block rounded to multiples of one step: integers from -(2^(bits-1) - 1) to
    2^(bits-1) - 1, or of what is positive from 0 to 2^bits - 1."""
    rows, columns = x.shape[-2:]
    padded = F.pad(x, (0, -columns % block[1], 0, -rows % block[0]))
    tiles = padded.unflatten(-1, (-1, block[1])).unflatten(-3, (-1, block[0]))  # (..., n, b, m, c)
    top = 2**bits - 1 if positive else 2 ** (bits - 1) - 1
    scale = tiles.abs().amax((-3, -1), keepdim=True) / top
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    found = (tiles / scale).round().clamp(-top, top) * scale
    return found.flatten(-2).flatten(-3, -2)[..., :rows, :columns]


def axis_orders(grid: Sequence[int]) -> dict[tuple[int, ...], Tensor]:
    """For each order of the axes of a grid, the slowest first, which token (T,) is at each place; tokens are counted
    with the last axis the fastest."""
    tokens = torch.arange(math.prod(grid)).view(*grid)
    return {axes: tokens.permute(axes).flatten() for axes in itertools.permutations(range(len(grid)))}


def block_sums(weights: Tensor, block_size: int) -> Tensor:
    """Sums (..., n, m) over the blocks of matrices (..., T, S)."""
    rows, columns = weights.shape[-2:]
    padded = F.pad(weights, (0, -columns % block_size, 0, -rows % block_size))
    return padded.unflatten(-1, (-1, block_size)).sum(-1).unflatten(-2, (-1, block_size)).sum(-2)


def kept_blocks(weights: Tensor, block_size: int, mass: float) -> Tensor:
    """For each block of queries the fewest blocks of keys, the largest first, that hold the share ``mass`` of the
    weights (..., T, S): (..., n, m) bool. At least one is kept."""
    sums = block_sums(weights, block_size)
    held, order = sums.sort(-1, descending=True)
    before = held.cumsum(-1) - held
    kept = before < mass * sums.sum(-1, keepdim=True) * (1 - 1e-6)
    kept[..., 0] = True
    return torch.zeros_like(kept).scatter(-1, order, kept)


def unevenness(weights: Tensor, block_size: int) -> Tensor:
    """Mean, over the blocks of matrices (..., T, S), of the largest number over the mean: what rounding with a scale a
    block suffers from. (...)"""
    rows, columns = weights.shape[-2:]
    padded = F.pad(weights, (0, -columns % block_size, 0, -rows % block_size))
    tiles = padded.unflatten(-1, (-1, block_size)).unflatten(-3, (-1, block_size))
    tiny = torch.finfo(weights.dtype).tiny
    return (tiles.amax((-3, -1)) / tiles.mean((-3, -1)).clamp(min=tiny)).mean((-2, -1))
