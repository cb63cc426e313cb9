"""Scatterbrain attention in both directions, for encoders."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from zoo.kernels import linear_attention
from zoo.kernels.dispatch import compute_dtype, full_precision
from zoo.layers.attention.lsh import Buckets, lsh_buckets
from zoo.layers.attention.random_features import log_features
from zoo.layers.attention.scatterbrain import ScatterbrainAttention
from zoo.layers.attention.sparse_low_rank import (
    WeightedSum,
    bucket_sum,
    exponential_sum,
    key_shift,
    normalised,
    rescaled,
    without,
)


def bidirectional_sparse_low_rank(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    projection: Tensor,
    window: int,
    *,
    mask: Tensor | None = None,
    buckets: Buckets | None = None,
) -> Tensor:
    r"""Attention with exp(q . k) for the keys around a query and within buckets, random features for all others.

    The keys around query t are t - floor(window / 2) to t + ceil(window / 2) - 1. The sums of the others' features run
    from both ends of the sequence up to these, so that only pairs of a bucket have to be taken out again.

    Args:
        q, k: (B, T, H, d), float32 or float64, scaled so that the weights are exp(q . k).
        v: (B, T, H, V).
        projection: (rows, d); there are M = 2 * rows features.
        window: keys of the exact part.
        mask: (B, T), False at keys that nobody sees; they see themselves besides.
        buckets: further exact pairs.

    Returns:
        (B, T, H, V).
    """
    behind, ahead, v = window // 2, (window - 1) // 2, F.pad(v, (0, 1), value=1.0)
    mask = torch.ones(q.shape[:2], dtype=torch.bool, device=q.device) if mask is None else mask
    shift, log_q = key_shift(projection), log_features(q, projection)
    largest = log_q.amax(-1, keepdim=True).detach()
    phi_q = (log_q - largest).exp() / log_q.shape[-1]
    phi_k = (log_features(k, projection) - shift).exp() * mask[..., None, None]
    low_rank = _before(phi_q, phi_k, v, behind)
    low_rank = low_rank + _before(phi_q.flip(1), phi_k.flip(1), v.flip(1), ahead).flip(1)
    sums = [_around(q, k, v, mask, behind, ahead)]
    if buckets is not None:
        for index in range(buckets.query_order.shape[2]):
            exact, counted = bucket_sum(
                phi_q, phi_k, q, k, v, buckets, index, lambda back: (back > behind) | (back < -ahead)
            )
            sums.append(exact)
            low_rank = without(low_rank, counted)
    return normalised(*sums, rescaled(low_rank, largest + shift))


def _before(phi_q: Tensor, phi_k: Tensor, v: Tensor, near: int) -> Tensor:
    """Sums of the low-rank part over the keys more than ``near`` steps before each query."""
    gap = min(near + 1, v.shape[1])
    phi_k, v = (F.pad(t, (0, 0, 0, 0, gap, 0))[:, : v.shape[1]] for t in (phi_k, v))
    return linear_attention(phi_q, phi_k, v, scale=1.0).output


def _around(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, behind: int, ahead: int) -> WeightedSum:
    """Blocks of queries against the keys from ``behind`` steps back to ``ahead`` steps on."""
    length = q.shape[1]
    behind, ahead = min(behind, length - 1), min(ahead, length - 1)
    block = min(behind + ahead + 1, length)
    missing, span = -length % block, block + behind + ahead
    q = rearrange(F.pad(q, (0, 0, 0, 0, 0, missing)), "b (n block) h d -> b n h block d", block=block)
    k, v = (
        F.pad(t, (0, 0, 0, 0, behind, ahead + missing)).unfold(1, span, block) for t in (k, v)
    )  # (B, n, H, d, span)
    real = F.pad(mask, (behind, ahead + missing)).unfold(1, span, block)[:, :, None, None]
    query, key = (torch.arange(n, device=q.device) for n in (block, span))
    offset = key - behind - query[:, None]
    seen = (offset >= -behind) & (offset <= ahead) & (real | (offset == 0))
    total, log_scale = exponential_sum(q @ k, seen, v.mT)
    return WeightedSum(*(rearrange(t, "b n h block d -> b (n block) h d")[:, :length] for t in (total, log_scale)))


class BidirectionalScatterbrain(ScatterbrainAttention):
    r"""Softmax attention to the whole sequence, exact on a sparse support and by random features elsewhere.

    .. math::
        \tilde A_{ts} = \begin{cases} \exp(q_t \cdot k_s / \sqrt d) & (t, s) \in \mathcal{S} \\
        \phi(q_t) \cdot \phi(k_s) & \text{else} \end{cases}, \quad
        y_t = W_o \frac{\sum_s \tilde A_{ts} v_s}{\sum_s \tilde A_{ts}}

    The support is the window around each step and, with ``num_hashes``, the pairs that share a bucket of neighbours in
    a sorted hash of the sequence: in training and in evaluation the same. Projections and features are those of
    ``ScatterbrainAttention``; there is no state, and no position information.

    Args:
        dim, num_heads, window, num_features, cluster_size, num_hashes, head_dim: of ``ScatterbrainAttention``.

    Paper: Chen et al., "Scatterbrain: Unifying Sparse and Low-rank Attention", arXiv 2110.15343, section 4.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
        num_features: int,
        *,
        cluster_size: int = 32,
        num_hashes: int = 0,
        head_dim: int | None = None,
    ):
        options = {"cluster_size": cluster_size, "num_hashes": num_hashes, "head_dim": head_dim}
        super().__init__(dim, num_heads, window, num_features, **options)  # type: ignore[arg-type]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """x (B, T, dim), and mask (B, T), False at padding, which comes last and changes nothing -> (B, T, dim)."""
        q, k, v = (proj(x).unflatten(-1, (self.num_heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        wide = compute_dtype(q)
        with full_precision(x.device):
            q, k = (heads.to(wide) * self.head_dim**-0.25 for heads in (q, k))
            y = bidirectional_sparse_low_rank(
                q, k, v.to(wide), self.projection.to(wide), self.window, mask=mask, buckets=self._buckets(q, k, mask)
            )
        return self.out_proj(y.to(v.dtype).flatten(2))

    def init_state(self, batch_size, max_length=None, device=None, dtype=None):
        """None: it reads the future.

        Raises:
            ValueError: always.
        """
        raise ValueError("bidirectional attention reads the future and has no state: call it on whole sequences")

    def _buckets(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Buckets | None:
        if not len(self.directions):
            return None
        packed = {}
        if mask is not None:
            index, count = torch.arange(q.shape[1], device=q.device), mask.sum(1, keepdim=True)
            packed = {"positions": torch.where(mask, index, index - count), "segments": (~mask).long()}
        return lsh_buckets(q, k, self.directions.to(q.dtype), self.cluster_size, **packed)
