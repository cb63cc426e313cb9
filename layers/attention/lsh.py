"""Locality-sensitive hashing of queries and keys into sorted buckets of equal size."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Buckets(NamedTuple):
    """Of R hashes: which query and which key stands in each sorted slot, and the bucket each of them is in.

    Slots i to i + size - 1 make up a bucket when i is a multiple of ``size``; with packed sequences a bucket begins at
    any slot and ends with its sequence, so that it lies within its aligned group of slots and the two beside it.
    """

    query_order: Tensor  # (B, H, R, T), of slots: the index of the query
    key_order: Tensor  # (B, H, R, T), of slots: the index of the key
    query_bucket: Tensor  # (B, H, R, T), of queries
    key_bucket: Tensor  # (B, H, R, T), of keys
    size: int
    packed: bool


def random_directions(num_hashes: int, dim: int) -> Tensor:
    """(R, dim + 2) normal vectors for ``lsh_buckets`` of queries and keys of width ``dim``."""
    return torch.randn(num_hashes, dim + 2)


@torch.no_grad()
def lsh_buckets(
    q: Tensor, k: Tensor, directions: Tensor, size: int, positions: Tensor | None = None, segments: Tensor | None = None
) -> Buckets:
    r"""Queries and keys sorted by their random projections, ``size`` neighbours a bucket.

    The vectors are first mapped asymmetrically (XBOX+), so that the nearest key is the one of the largest dot product:

    .. math::
        Q(q) = [q, 0, \sqrt{M^2 - |q|^2}], \quad K(k) = [k, \sqrt{M^2 - |k|^2}, 0], \quad
        |Q(q) - K(k)|^2 = 2 M^2 - 2 \, q \cdot k, \quad M^2 = \max |q|^2 + \max |k|^2

    Which vectors share a bucket depends on the whole sequence.

    Args:
        q, k: (B, T, H, d).
        directions: (R, d + 2).
        size: of a bucket; a sequence's last one may be smaller.
        positions, segments: (B, T), of packed rows: the steps since the sequence began, and its number in the row from
            0. Each sequence is sorted by itself.

    Papers: Daras et al., "SMYRF", arXiv 2010.05315; as used by Chen et al., "Scatterbrain", arXiv 2110.15343.
    """
    q_norm, k_norm = q.square().sum(-1), k.square().sum(-1)
    longest = _largest(q_norm, segments) + _largest(k_norm, segments)
    q_rest, k_rest = ((longest - norm).clamp(min=0).sqrt()[..., None] for norm in (q_norm, k_norm))
    inner, key_rest, query_rest = directions[:, :-2].T, directions[:, -2], directions[:, -1]
    q_hash, k_hash = q @ inner + q_rest * query_rest, k @ inner + k_rest * key_rest  # (B, T, H, R)
    length = q.shape[1]
    slots = torch.arange(length, device=q.device)[None] if positions is None else positions
    slots = slots // size if segments is None else slots // size + segments * length
    query_order, key_order = (_sorted(hashes.permute(0, 2, 3, 1), segments) for hashes in (q_hash, k_hash))
    slots = slots[:, None, None].expand_as(query_order)
    query_bucket, key_bucket = (torch.zeros_like(o).scatter(-1, o, slots) for o in (query_order, key_order))
    return Buckets(query_order, key_order, query_bucket, key_bucket, size, segments is not None)


def _largest(norm: Tensor, segments: Tensor | None) -> Tensor:
    """Largest of (B, T, H) over the sequence of each step."""
    if segments is None:
        return norm.amax(1, keepdim=True)
    index = segments[..., None].expand_as(norm)
    return torch.zeros_like(norm).scatter_reduce(1, index, norm, "amax").gather(1, index)


def _sorted(hashes: Tensor, segments: Tensor | None) -> Tensor:
    """Order of (B, H, R, T) by value, sequence after sequence."""
    order = hashes.argsort(dim=-1, stable=True)
    if segments is None:
        return order
    sequence = segments[:, None, None].expand_as(order).gather(-1, order)
    return order.gather(-1, sequence.argsort(dim=-1, stable=True))
