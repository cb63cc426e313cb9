"""Online k-means: centroids that follow the points they attract."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype, full_precision
from zoo.layers.precision import KeepsFloat32
from zoo.layers.report import over_processes


class OnlineKMeans(KeepsFloat32):
    r"""K centroids a head, moving averages of the points nearest to them.

    .. math::
        c_t = \arg\max_c \, x_t \cdot \mathrm{LN}(\mu_c), \quad
        \mu_c \leftarrow \lambda \mu_c + (1 - \lambda) \, \mathrm{mean} \{x_t : c_t = c\}

    Points and LN(mu) lie on one sphere, so the largest product is the smallest distance. ``observe`` adds up points,
    ``update`` moves the centroids by what was observed since the last update: to observe the same points twice, as
    recomputed activations do, changes no mean. A centroid without points stays where it is. The points of all
    processes are added up.

    Attributes:
        centroids: buffer mu (H, K, d), saved with the model. sums (H, K, d), counts (H, K): of the observed points.

    Args:
        num_heads: H.
        num_clusters: K.
        dim: d, of points with mean 0 and variance 1 (norm sqrt(d)).
        decay: lambda.

    Raises:
        ValueError: for a decay outside [0, 1).

    Paper: Roy et al., "Efficient Content-Based Sparse Attention with Routing Transformers", arXiv 2003.05997, section
    4.1. The authors' code routes by x . mu, whose longer centroids attract more, and averages sums and counts apart,
    which weights a step by its points.
    """

    float32_buffers = ("centroids", "sums", "counts")
    centroids: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, num_heads: int, num_clusters: int, dim: int, decay: float = 0.999):
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        centroids = F.layer_norm(torch.randn(num_heads, num_clusters, dim), (dim,))
        self.register_buffer("centroids", centroids)
        self.register_buffer("sums", torch.zeros_like(centroids), persistent=False)
        self.register_buffer("counts", torch.zeros(num_heads, num_clusters), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Points x (B, H, T, d) -> products with the centroids' directions (B, H, T, K), float32 or wider."""
        wide = compute_dtype(x)
        directions = F.layer_norm(self.centroids.to(wide), self.centroids.shape[-1:])
        with full_precision(x.device):
            return x.to(wide) @ directions.mT

    def assigned(self, cluster: Tensor) -> Tensor:
        """The centroids of clusters (B, H, T), a copy (B, H, T, d)."""
        heads = torch.arange(cluster.shape[1], device=cluster.device)[:, None]
        return self.centroids[heads, cluster]

    @torch.no_grad()
    def observe(self, x: Tensor, cluster: Tensor, mask: Tensor | None = None) -> None:
        """Add points x (B, H, T, d) of clusters (B, H, T) to what the next update averages, but where mask is False."""
        members = F.one_hot(cluster, self.counts.shape[1]).to(self.sums.dtype)  # (B, H, T, K)
        if mask is not None:
            members = members * mask[..., None]
        with full_precision(x.device):
            self.sums += torch.einsum("bhtk,bhtd->hkd", members, x.to(self.sums.dtype))
        self.counts += members.sum((0, 2))

    @torch.no_grad()
    def update(self) -> None:
        """Move the centroids towards the means of the points observed by all processes, and forget these."""
        over_processes(self.sums, self.counts)
        mean = self.sums / self.counts.clamp(min=1)[..., None]
        rate = (1 - self.decay) * (self.counts > 0).to(self.centroids.dtype)
        self.centroids.lerp_(mean.to(self.centroids.dtype), rate[..., None])
        self.sums.zero_()
        self.counts.zero_()
