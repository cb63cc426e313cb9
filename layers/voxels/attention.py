"""Scattered linear attention: all windows of all clouds in one sequence, however many voxels each has."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.options import require_above, require_at_least
from zoo.layers.voxels.sites import Sites
from zoo.layers.voxels.sums import product, sums


class ScatteredLinearAttention(nn.Module):
    r"""Linear attention among the voxels of each window, of any number, without padding or sorting.

    .. math::
        q, k, v = \mathrm{ReLU}(x W_q), \mathrm{ReLU}(x W_k), x W_v, \quad
        y_n = \frac{q_n \sum_{m \in w(n)} k_m^\top v_m}{q_n \cdot \sum_{m \in w(n)} k_m + \epsilon}

    for each head; y is then projected. Time is linear in the voxels, O(M d) a channel, and a window costs a matrix.
    Sums are float32 or wider.

    Args:
        dim: model width.
        num_heads: H, which must divide it.
        eps: epsilon.

    Raises:
        ValueError: for heads that do not divide dim, or an eps that is not above 0.

    Paper: He et al., "ScatterFormer: Efficient Voxel Transformer with Scattered Linear Attention", arXiv 2401.00912.
    """

    def __init__(self, dim: int, num_heads: int, eps: float = 1e-6):
        super().__init__()
        require_at_least(1, dim=dim, num_heads=num_heads)
        require_above(0, eps=eps)
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim, got num_heads {num_heads} and dim {dim}")
        self.num_heads, self.eps = num_heads, eps
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, window: Tensor, count: int) -> Tensor:
        """Voxels attend to those of their window.

        Args:
            x: (M, dim).
            window: (M,) int64, the window of each voxel, from 0 to count - 1, in any order.
            count: of windows, empty ones among them.

        Returns:
            (M, dim).

        Raises:
            ValueError: for tensors that do not fit together.
        """
        if x.dim() != 2 or window.shape != x.shape[:1]:
            raise ValueError(
                f"x must be (voxels, dim) and window (voxels,), got {tuple(x.shape)} and {tuple(window.shape)}"
            )
        wide = torch.promote_types(x.dtype, torch.float32)
        q, k, v = self.qkv(x).to(wide).unflatten(-1, (3, self.num_heads, -1)).unbind(1)  # (M, H, d)
        q, k = q.relu(), k.relu()
        v = torch.cat([v, torch.ones_like(v[..., :1])], -1)  # the last column adds up the keys
        y = product(q, sums(k, v, window, count), window)
        y = y[..., :-1] / (y[..., -1:] + self.eps)
        return self.out(y.flatten(1).to(x.dtype))


def windows(sites: Sites, size: int) -> tuple[Tensor, int]:
    """The window of each voxel, of ``size`` by ``size`` places on the ground and all heights, and how many there are.

    Rows that are no place are in a window of their own, the last.

    Returns:
        (M,) int64, count.
    """
    clouds, _, *ground = sites.shape
    along_y, along_x = (-(-places // size) for places in ground)
    cloud, _, y, x = sites.coordinates.unbind(1)
    window, count = (cloud * along_y + y // size) * along_x + x // size, clouds * along_y * along_x
    if sites.valid is None:
        return window, count
    return torch.where(sites.valid, window, count), count + 1
