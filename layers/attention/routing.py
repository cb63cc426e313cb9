"""Attention among the positions that one centroid attracts: the routing heads of the Routing Transformer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.dispatch import compute_dtype
from zoo.layers.attention.clusters import (
    SORTED_FROM,
    balanced_attention,
    nearest_attention,
    sorted_nearest_attention,
)
from zoo.layers.attention.keys import Place, attended
from zoo.layers.attention.kmeans import OnlineKMeans
from zoo.layers.attention.rotary import Rotary
from zoo.layers.attention.state import KeyValueState
from zoo.layers.mixer import Mixer
from zoo.layers.options import require_at_least
from zoo.layers.report import Reports


@dataclass
class RoutingState(KeyValueState):
    """Keys, values and ``cluster`` (B, H, capacity), the nearest centroid of each slot's token."""

    slots: ClassVar[dict[str, int]] = {**KeyValueState.slots, "cluster": 2}

    cluster: Tensor = dataclasses.field(kw_only=True)


class RoutingAttention(Reports, Mixer):
    r"""Softmax attention within clusters of the positions, found by online k-means on the shared queries and keys.

    .. math::
        q_t = k_t = \mathrm{LN}(W_{qk} x_t), \quad c_t = \arg\max_c \, q_t \cdot \mathrm{LN}(\mu_c), \quad
        y_t = W_o \sum_{s \in \mathcal{S}_t} \mathrm{softmax}_s (\mathrm{scale} \; R_t q_t \cdot R_s k_s) \, v_s

    LN has no weights and puts all points on one sphere; R turns them by their rotary positions after the routing. With
    K about sqrt(T) clusters of T / K positions the cost is O(T^1.5 d).

    Two forms of the sets :math:`\mathcal{S}_t`:

    - In training mode, the paper's balanced clusters: each centroid takes its ``cluster_size`` nearest positions of the
      whole row, and t attends to the earlier ones and itself in each cluster that took it, averaged. The values are
      causal, but which positions are taken depends on later ones (and, in a packed row, on its other sequences).
    - In evaluation mode, and from a state: all s <= t with :math:`c_s = c_t`. It is strictly causal, and decoding
      repeats it exactly: keys, values and clusters of the past are the state. Memory is linear in T. Long sequences are
      sorted by cluster; short or packed ones, and those that go on from a state, are masked, which costs O(T^2).

    Both are full causal attention where one cluster holds everything. How well they agree depends on the training;
    ``activity`` tells. The centroids follow the points of the training passes: they move in ``after_step``, called by
    ``zoo.after_step(model)`` once the optimiser has stepped; accumulated and recomputed passes see the same ones.

    Attributes:
        auxiliary_losses: in training mode "commitment" (already weighted), the mean of (q - mu_c)^2 over the entries.
        activity: of the latest pass in training mode: "covered", share of the positions in at least one balanced
            cluster; "agreement", share of the balanced clusters' members whose nearest centroid is that cluster's.

    Args:
        dim: model width.
        num_heads: H.
        num_clusters: K, of each head.
        cluster_size: positions a centroid takes in training mode, all where the row is shorter.
        head_dim: d, dim / num_heads when None.
        scale: d^-0.5 when None; the authors' code has 1.
        decay: of the centroids.
        commitment_weight: of the loss.
        rope_base: of the rotary positions, which stand for the paper's learned relative ones.

    Raises:
        ValueError: when num_heads does not divide dim into heads of even width, num_clusters or cluster_size is below
            1, decay is not in [0, 1) or commitment_weight is negative.

    Paper: Roy et al., "Efficient Content-Based Sparse Attention with Routing Transformers", arXiv 2003.05997.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_clusters: int,
        cluster_size: int,
        *,
        head_dim: int | None = None,
        scale: float | None = None,
        decay: float = 0.999,
        commitment_weight: float = 1e-4,
        rope_base: float = 10000.0,
    ):
        super().__init__()
        require_at_least(1, num_heads=num_heads, head_dim=head_dim)
        if (head_dim is None and dim % num_heads) or (head_dim or dim // num_heads) % 2:
            raise ValueError(
                "num_heads must divide dim into even heads, or head_dim be given and even: "
                f"got dim {dim}, num_heads {num_heads}, head_dim {head_dim}"
            )
        if min(num_clusters, cluster_size) < 1 or commitment_weight < 0:
            raise ValueError(
                "num_clusters and cluster_size must be at least 1 and commitment_weight at least 0: got num_clusters "
                f"{num_clusters}, cluster_size {cluster_size}, commitment_weight {commitment_weight}"
            )
        self.num_heads, self.head_dim = num_heads, head_dim or dim // num_heads
        self.num_clusters, self.cluster_size = num_clusters, cluster_size
        self.scale = self.head_dim**-0.5 if scale is None else scale
        self.commitment_weight, self.rotary = commitment_weight, Rotary(self.head_dim, rope_base)
        self.qk_proj = nn.Linear(dim, num_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(dim, num_heads * self.head_dim, bias=False)
        self.out_proj = nn.Linear(num_heads * self.head_dim, dim, bias=False)
        self.kmeans = OnlineKMeans(num_heads, num_clusters, self.head_dim, decay)

    @property
    def whole_in_training(self) -> bool:
        """Clusters take positions of the whole row."""
        return True

    def forward(self, x: Tensor, state: RoutingState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        balanced, place = self.training and state is None, Place.of(x, state, seq_idx)
        qk, v = (proj(x).unflatten(-1, (self.num_heads, -1)) for proj in (self.qk_proj, self.v_proj))  # (B, T, H, d)
        qk = F.layer_norm(qk, (self.head_dim,), eps=1e-6)
        points, v = qk.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, d)
        qk = self.rotary(place.position, qk)[0].transpose(1, 2).to(v.dtype)
        affinity = self.kmeans(points.detach())  # (B, H, T, K)
        cluster = affinity.argmax(-1)
        losses, activity = {}, {}
        if balanced:
            y, members = balanced_attention(qk, v, affinity, self.cluster_size, self.scale, seq_idx)
            losses, activity = self._learn(points, cluster, members, seq_idx)
        else:
            y = self._nearest(qk, v, cluster, place, state)
        self.report(losses, activity)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def after_step(self) -> None:
        """Move the centroids by the training passes since the last call; see ``zoo.after_step``."""
        self.kmeans.update()

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> RoutingState:
        """An empty cache of capacity ``max_length``, or one that grows."""
        device, dtype = self.placement(device, dtype)
        shape = (batch_size, self.num_heads, max_length or 16, self.head_dim)
        key, value = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        cluster = torch.zeros(shape[:3], device=key.device, dtype=torch.int64)
        return RoutingState(key, value, max_length=max_length, cluster=cluster)

    def state_size(self, length: int) -> int:
        """Grows with ``length``: a key, a value and a cluster a step and head."""
        return (2 * self.head_dim + 1) * self.num_heads * length

    def _nearest(self, qk: Tensor, v: Tensor, cluster: Tensor, place: Place, state: RoutingState | None) -> Tensor:
        """The evaluation form, (B, H, T, d)."""
        if state is None:
            (k, v, mask), keys_of = attended(qk, v, place), cluster
        else:
            k, v, mask = state.append(qk, v, place, cluster=cluster)
            keys_of = state.cluster[:, :, : k.shape[2]]
        whole = not isinstance(k.shape[2], torch.SymInt) and qk.shape[2] == k.shape[2] >= SORTED_FROM
        if mask is None and whole:
            return sorted_nearest_attention(qk, v, cluster, self.num_clusters, self.scale)
        return nearest_attention(qk, k, v, cluster, keys_of, self.scale, mask)

    def _learn(
        self, points: Tensor, cluster: Tensor, members: Tensor, seq_idx: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Show the points to the centroids; the loss that keeps the points near them, and how the two forms agree."""
        real = torch.ones_like(cluster, dtype=torch.bool)
        if seq_idx is not None:
            real = (seq_idx >= 0)[:, None].expand_as(cluster)
        self.kmeans.observe(points, cluster, real)
        losses = {}
        if self.commitment_weight:
            wide = compute_dtype(points)
            distance = (points.to(wide) - self.kmeans.assigned(cluster)).square().mean(-1)
            losses["commitment"] = self.commitment_weight * _mean(distance, real)
        index = members.flatten(2)
        nearest = cluster.gather(2, index).view_as(members)
        agree = nearest == torch.arange(self.num_clusters, device=nearest.device)[:, None]
        covered = torch.zeros_like(real).scatter(2, index, True)
        agreement = _mean(agree.flatten(2), real.gather(2, index))
        return losses, {"covered": _mean(covered, real), "agreement": agreement}


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Of the values where the mask is True."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
