"""Attention weights that are exact on a sparse support and a product of random features elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from zoo.kernels import linear_attention
from zoo.layers.attention.lsh import Buckets
from zoo.layers.attention.random_features import log_features, positive_features

LARGEST_LOG_FEATURE = 60.0  # of a key: exp(60) is far from float32's exp(88), and leaves small features the room to it


class WeightedSum(NamedTuple):
    """For each query the sum of weight * (value, 1) over some keys: ``total`` (..., V + 1) times exp(log_scale)."""

    total: Tensor
    log_scale: Tensor  # (..., 1), minus infinity where there are no keys; takes no gradient


def scatterbrain_weights(q: Tensor, k: Tensor, projection: Tensor, support: Tensor) -> Tensor:
    r"""Unnormalised weights of every pair, in memory T S: the definition, for studies and tests.

    .. math::
        \tilde A = \phi(q) \phi(k)^\top + S, \quad
        S_{ij} = \exp(q_i \cdot k_j) - \phi(q_i) \cdot \phi(k_j) \text{ on the support, else } 0

    Args:
        q: (..., T, d), already divided by the temperature, as ``exp(q . k)`` is approximated.
        k: (..., S, d).
        projection: (rows, d) from ``orthogonal_gaussian``.
        support: boolean (..., T, S), True where exact. Not causal: multiply by a mask for that.

    Paper: Chen et al., "Scatterbrain: Unifying Sparse and Low-rank Attention", arXiv 2110.15343, section 4.
    """
    low_rank = positive_features(q, projection) @ positive_features(k, projection).mT
    return torch.where(support, (q @ k.mT).exp(), low_rank)


def sparse_low_rank_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    projection: Tensor,
    positions: Tensor,
    *,
    memory: Tensor | None = None,
    seq_idx: Tensor | None = None,
    buckets: Buckets | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Causal attention: exp(q . k) for the ``window`` newest keys and within buckets, random features for the others.

    A key joins the sums of the low-rank part when it leaves the window, so no pair is counted twice and nothing has to
    be subtracted. Only pairs of a bucket are: their features are taken out of these sums again.

    No exponential overflows, and none depends on a later key: w . k - |k|^2 / 2 is at most |w|^2 / 2 whatever k is, so
    the keys' features are divided by a constant of ``projection`` alone; those of a query by their largest.

    Args:
        q: (B, T, H, d), float32 or float64, scaled so that the weights are exp(q . k).
        k, v: (B, window + T, H, d) and (B, window + T, H, V): the window before the first query, then the new ones.
        projection: (rows, d); there are M = 2 * rows features.
        positions: (B, T): steps of each query since its sequence began; keys further back are not seen.
        memory: (B, H, M, V + 1), sums of the keys that left the window; zeros when None.
        seq_idx: (B, T), of packed sequences.
        buckets: further exact pairs.

    Returns:
        Output (B, T, H, V), and the memory after the last step.
    """
    length = q.shape[1]
    window, v = k.shape[1] - length, F.pad(v, (0, 1), value=1.0)
    shift = key_shift(projection)
    log_q, log_k = log_features(q, projection), log_features(k[:, :length], projection)
    largest = log_q.amax(-1, keepdim=True).detach()
    phi_q = (log_q - largest).exp() / log_q.shape[-1]
    phi_k = (log_k - shift).exp() * (positions >= window)[..., None, None]
    low_rank, memory = linear_attention(phi_q, phi_k, v[:, :length], scale=1.0, initial_state=memory, seq_idx=seq_idx)
    sums = [_window_sum(q, k, v, positions)]
    if buckets is not None:
        phi_k = F.pad(phi_k[:, window:], (0, 0, 0, 0, 0, window))  # the newest are in no low-rank sum
        features_and_keys = (phi_q, phi_k, q, k[:, window:], v[:, window:])
        for index in range(buckets.query_order.shape[2]):
            exact, counted = bucket_sum(*features_and_keys, buckets, index, lambda back: back >= window)
            sums.append(exact)
            low_rank = without(low_rank, counted)
    return normalised(*sums, rescaled(low_rank, largest + shift)), memory


def key_shift(projection: Tensor) -> Tensor:
    """What is taken from the logarithms of the keys' features, lest their exponentials overflow: ()."""
    return (projection.square().sum(-1).amax() / 2 - LARGEST_LOG_FEATURE).clamp(min=0)


def _window_sum(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> WeightedSum:
    """Blocks of ``window`` queries against the 2 * window keys that they may see."""
    length = q.shape[1]
    window = k.shape[1] - length
    block = min(window, length)
    missing = -length % block
    q = rearrange(F.pad(q, (0, 0, 0, 0, 0, missing)), "b (n block) h d -> b n h block d", block=block)
    k, v = (F.pad(t, (0, 0, 0, 0, 0, missing)).unfold(1, block + window, block) for t in (k, v))  # (B, n, H, d, span)
    since = F.pad(positions, (0, missing)).unflatten(1, (-1, block))[:, :, None, :, None]
    query, key = (torch.arange(n, device=q.device) for n in (block, block + window))
    distance = query[:, None] + window - key
    seen = (distance >= 0) & (distance < window) & (distance <= since)
    total, log_scale = exponential_sum(q @ k, seen, v.mT)
    sums = (rearrange(t, "b n h block d -> b (n block) h d")[:, :length] for t in (total, log_scale))
    return WeightedSum(*sums)


def bucket_sum(
    phi_q: Tensor,
    phi_k: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    buckets: Buckets,
    index: int,
    beyond: Callable[[Tensor], Tensor],
) -> tuple[WeightedSum, Tensor]:
    """Of the pairs that hash ``index`` finds first: the exact sum, and what phi q . phi k gave.

    ``beyond`` tells of the steps that a key is back of its query whether the pair counts here.
    """
    query_order, key_order = buckets.query_order[:, :, index], buckets.key_order[:, :, index]
    queries = [_in_slots(t, query_order, buckets.size).mT for t in (phi_q, q, _labels(buckets.query_bucket))]
    beside = buckets.size if buckets.packed else 0
    keys = [_in_slots(t, key_order, buckets.size, beside) for t in (phi_k, k, _labels(buckets.key_bucket), v)]
    (phi_q, q, labels), (phi_k, k, key_labels, v) = queries, keys
    same = labels[..., None, 1:] == key_labels[..., None, 1:, :].mT  # (B, H, n, size, span, R)
    seen = same[..., index] & ~same[..., :index].any(-1) & beyond(labels[..., :1] - key_labels[..., :1, :])
    exact = exponential_sum(q @ k, seen, v.mT)
    counted = (phi_q @ phi_k * seen) @ v.mT
    back = query_order.argsort(-1)[..., None]
    total, log_scale, counted = (
        t.flatten(2, 3).gather(2, back.expand(-1, -1, -1, t.shape[-1])).transpose(1, 2) for t in (*exact, counted)
    )
    return WeightedSum(total, log_scale), counted


def _labels(bucket: Tensor) -> Tensor:
    """(B, H, R, T) -> (B, T, H, 1 + R): the index of a step, then its buckets."""
    index = torch.arange(bucket.shape[-1], device=bucket.device).expand_as(bucket[:, :, :1])
    return torch.cat([index, bucket], dim=2).permute(0, 3, 1, 2)


def _in_slots(x: Tensor, order: Tensor, size: int, beside: int = 0) -> Tensor:
    """(B, T, H, D) in the order (B, H, T): (B, H, n, D, size + 2 * beside), -1 or 0 where there is nothing."""
    x = x.transpose(1, 2)
    x = x.gather(2, order[..., None].expand(-1, -1, -1, x.shape[-1]))
    missing, filler = -x.shape[2] % size, 0 if x.is_floating_point() else -1
    x = F.pad(x, (0, 0, beside, beside + missing), value=filler)
    return x.unfold(2, size + 2 * beside, size)


def exponential_sum(logits: Tensor, seen: Tensor, v: Tensor) -> WeightedSum:
    """Of logits (..., T, S) where ``seen``, over values (..., S, V + 1)."""
    logits = logits.masked_fill(~seen, -torch.inf)
    largest = logits.amax(-1, keepdim=True).detach()
    weights = (logits - largest.masked_fill(largest == -torch.inf, 0)).exp()
    return WeightedSum(weights @ v, largest)


def without(low_rank: Tensor, counted: Tensor) -> Tensor:
    """The difference, or nothing where rounding is all that is left of the weights."""
    rest, rounding = low_rank - counted, 100 * torch.finfo(low_rank.dtype).eps
    return rest * (rest[..., -1:] > rounding * low_rank[..., -1:])


def rescaled(total: Tensor, log_scale: Tensor) -> WeightedSum:
    """The sum total * exp(log_scale) with weights that add up to 1 before the scale."""
    mass = total[..., -1:].detach()
    empty = mass < torch.finfo(mass.dtype).tiny
    mass = mass.masked_fill(empty, 1)
    return WeightedSum(total / mass, (log_scale + mass.log()).masked_fill(empty, -torch.inf))


def normalised(*sums: WeightedSum) -> Tensor:
    """The values of all sums together over their weights: one normaliser."""
    largest = torch.stack([part.log_scale for part in sums]).amax(0)
    together = torch.stack([part.total * (part.log_scale - largest).exp() for part in sums]).sum(0)
    return together[..., :-1] / together[..., -1:]
