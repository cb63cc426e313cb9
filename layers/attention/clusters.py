"""Attention within clusters of the positions: of equal size, or of the sizes that they have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.block_sparse_attention import block_sparse_attention

BLOCK_SIZE = 64  # of the sorted form
SORTED_FROM = 16 * BLOCK_SIZE  # steps; below, a mask over all pairs costs less than sorting
PIECE = SORTED_FROM  # queries a mask


def balanced_attention(
    qk: Tensor, v: Tensor, affinity: Tensor, cluster_size: int, scale: float, seq_idx: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Each cluster takes the ``cluster_size`` positions of highest affinity, and these attend to one another causally.

    Only the values are causal: whether a position is taken depends on all others, also on later ones. A position of
    several clusters gets the mean of their outputs, one of none gets 0. qk are queries and keys in one: with different
    ones the clusters' lists would differ, and the order within a list would not tell what is past.

    Args:
        qk, v: (B, H, T, d).
        affinity: (B, H, T, K).
        scale: of the logits.
        seq_idx: (B, T), negative for padding.

    Returns:
        Output (B, H, T, d), and the members of the clusters (B, H, K, min(cluster_size, T)), positions in order.
    """
    if seq_idx is not None:
        affinity = affinity.masked_fill((seq_idx < 0)[:, None, :, None], -torch.inf)
    members = affinity.mT.topk(min(cluster_size, affinity.shape[2]), sorted=False).indices.sort().values
    index = members.flatten(2)  # (B, H, K w)
    qk, value = (_take(t, index).unflatten(2, members.shape[2:]).flatten(1, 2) for t in (qk, v))  # (B, H K, w, d)
    mask = None
    if seq_idx is not None:
        ids = seq_idx[:, None].expand(-1, index.shape[1], -1).gather(2, index).view_as(members).flatten(1, 2)
        mask = (ids[..., :, None] == ids[..., None, :]).tril()
    y = F.scaled_dot_product_attention(qk, qk, value, attn_mask=mask, is_causal=mask is None, scale=scale)
    y = y.unflatten(1, members.shape[1:3]).flatten(2, 3)
    total = torch.zeros_like(v).scatter_add(2, _wide(index, v), y)
    count = affinity.new_zeros(v.shape[:3]).scatter_add(2, index, torch.ones_like(index, dtype=affinity.dtype))
    return (total / count.clamp(min=1)[..., None]).to(v.dtype), members


def nearest_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_cluster: Tensor,
    key_cluster: Tensor,
    scale: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Each of T queries attends to those of S keys that it may see and that are of its own cluster.

    By a mask over the pairs, of ``PIECE`` queries at a time. q (B, H, T, d), k and v (B, H, S, d), clusters (B, H, T)
    and (B, H, S), mask as in ``Attended`` -> (B, H, T, d).
    """
    length, pieces = q.shape[2], []
    whole = isinstance(length, torch.SymInt)  # in a program for any length
    for first in (0,) if whole else range(0, length, PIECE):
        last = length if whole else min(first + PIECE, length)
        end = last if mask is None and length > 1 else k.shape[2]
        same = query_cluster[:, :, first:last, None] == key_cluster[:, :, None, :end]
        if mask is not None:
            same = same & mask[..., first:last, :]
        elif length > 1:
            same = same.tril(first)
        queries, keys, values = q[:, :, first:last], k[:, :, :end], v[:, :, :end]
        pieces.append(F.scaled_dot_product_attention(queries, keys, values, attn_mask=same, scale=scale))
    return torch.cat(pieces, dim=2)


def sorted_nearest_attention(qk: Tensor, v: Tensor, cluster: Tensor, num_clusters: int, scale: float) -> Tensor:
    """``nearest_attention`` of one whole sequence to itself, in memory linear in T: O(T^2 / K) for even clusters.

    The positions are laid out cluster by cluster, each cluster from the beginning of a block, and a block of queries
    meets the blocks of its own cluster only. What fills up a cluster's last block lies after all its positions, so
    causality hides it. qk, v (B, H, T, d), cluster (B, H, T) in [0, num_clusters) -> (B, H, T, d).
    """
    member = F.one_hot(cluster, num_clusters)  # (B, H, T, K)
    rank = member.cumsum(2).gather(3, cluster[..., None])[..., 0] - 1
    blocks = -(-member.sum(2) // BLOCK_SIZE)  # (B, H, K)
    end = blocks.cumsum(2)
    slot = (end - blocks).gather(2, cluster) * BLOCK_SIZE + rank
    most = qk.shape[2] // BLOCK_SIZE + num_clusters
    owner = (end[..., None, :] <= torch.arange(most, device=end.device)[:, None]).sum(-1)  # (B, H, most)
    same = (owner[..., :, None] == owner[..., None, :]) & (owner < num_clusters)[..., None]
    qk, value = (
        t.new_zeros(*t.shape[:2], most * BLOCK_SIZE, t.shape[3]).scatter(2, _wide(slot, t), t).transpose(1, 2)
        for t in (qk, v)
    )
    y = block_sparse_attention(qk, qk, value, same, block_size=BLOCK_SIZE, causal=True, scale=scale)
    return _take(y.transpose(1, 2), slot)


def _take(tensor: Tensor, index: Tensor) -> Tensor:
    """Rows (B, H, n, d) of (B, H, T, d) at positions (B, H, n)."""
    return tensor.gather(2, _wide(index, tensor))


def _wide(index: Tensor, tensor: Tensor) -> Tensor:
    """Positions (B, H, n) for all of the last dimension of (B, H, T, d)."""
    return index[..., None].expand(-1, -1, -1, tensor.shape[3])
