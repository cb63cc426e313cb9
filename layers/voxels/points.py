"""Points to voxels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.layers.batch_norm import BatchNorm1d
from zoo.layers.voxels.sites import Triple, Voxels, distinct, inside, is_static


class PointEncoder(nn.Module):
    r"""Each voxel from the points in it: the largest of what a small network says of each.

    A point is described by itself, by its distance from the mean of its voxel's points and by that from the voxel's
    centre. The first of two layers also tells a point the largest values of its voxel.

    .. math::
        h_i = [f_i, \max_{j \in v(i)} f_j], \quad f = \mathrm{ReLU}(\mathrm{BN}(p W_1)), \quad
        y_v = \max_{i \in v} \mathrm{ReLU}(\mathrm{BN}(h_i W_2))

    Args:
        in_chans: numbers of a point, the first three of them x, y and z.
        dim: channels, even.
        voxel: edges of a voxel along x, y and z.
        low: where the grid begins, along x, y and z.
        grid: voxels along x, y and z.
        norm_momentum: how much a batch counts in the statistics of the batch norms while they train.

    Raises:
        ValueError: for fewer than three numbers, an odd width, or a grid without extent.

    Source: DynamicVoxelVFE of OpenPCDet, as ScatterFormer (arXiv 2401.00912) is released with.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        voxel: Sequence[float],
        low: Sequence[float],
        grid: Triple,
        norm_momentum: float = 0.01,
    ):
        super().__init__()
        if in_chans < 3 or dim < 2 or dim % 2 or not min(voxel) > 0 or min(grid) < 1:
            raise ValueError(
                "in_chans must be 3 or more, dim even, voxels have edges above 0 and the grid a voxel or more, got "
                f"in_chans {in_chans}, dim {dim}, voxel {tuple(voxel)}, grid {grid}"
            )
        self.voxel, self.low, self.grid = tuple(voxel), tuple(low), grid
        self.first, self.second = nn.Linear(in_chans + 6, dim // 2, bias=False), nn.Linear(dim, dim, bias=False)
        self.first_norm, self.second_norm = (BatchNorm1d(d, eps=1e-3, momentum=norm_momentum) for d in (dim // 2, dim))

    def forward(self, points: Tensor, levels: int) -> Voxels:
        """Points (B, N, in_chans), of which those outside the grid, or that are no numbers, do not count.

        Args:
            points: clouds.
            levels: voxels along z that the grid has for the layers behind, as many as its own or more.

        Returns:
            Voxels with features (M, dim).

        Raises:
            ValueError: for a cloud without a point inside.
        """
        place, there = self.places(points)
        shape = (len(points), levels, self.grid[1], self.grid[0])
        if not is_static(points):
            if not (some := there.any(1)).all():
                raise ValueError(
                    f"a point cloud must have a point inside the grid, from {self.low} in steps of {self.voxel} to "
                    f"{self.high}; those of rows {(~some).nonzero().flatten().tolist()} have none among "
                    f"{points.shape[1]}"
                )
            points, place, there = points[there], place[there], None
        points, place = points.flatten(0, -2), place.flatten(0, -2)
        kept = inside(place, shape) if there is None else there.flatten()
        sites = distinct(place, shape, kept)
        row = torch.where(kept, sites.find(place), len(sites))  # one more for what lies outside
        described = self._described(points, place, row, len(sites) + 1)
        x = self.first_norm(self.first(described)).relu()
        x = torch.cat([x, _largest(x, row, len(sites) + 1)[row]], 1)
        return Voxels(_largest(self.second_norm(self.second(x)).relu(), row, len(sites) + 1)[:-1], sites)

    def places(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Of points (B, N, in_chans) the coordinates (B, N, 4) of their voxels, and whether these are in the grid."""
        wide = torch.promote_types(points.dtype, torch.float32)
        low, edge, count = (points.new_tensor(part, dtype=wide) for part in (self.low, self.voxel, self.grid))
        place = ((points[..., :3].to(wide) - low) / edge).floor()
        there = ((place >= 0) & (place < count)).all(-1) & points.isfinite().all(-1)
        place = torch.where(there[..., None], place, 0).long().flip(-1)  # z, y, x
        cloud = torch.arange(len(points), device=points.device)[:, None, None].expand(-1, points.shape[1], 1)
        return torch.cat([cloud, place], -1), there

    @property
    def high(self) -> tuple[float, ...]:
        """Where the grid ends."""
        return tuple(a + n * edge for a, n, edge in zip(self.low, self.grid, self.voxel, strict=True))

    def _described(self, points: Tensor, place: Tensor, row: Tensor, count: int) -> Tensor:
        dtype, wide = points.dtype, torch.promote_types(points.dtype, torch.float32)
        points = torch.where(points.isfinite(), points, 0).to(wide)
        low, edge = (points.new_tensor(part) for part in (self.low, self.voxel))
        xyz = points[:, :3]
        total = xyz.new_zeros(count, 4).index_add(0, row, torch.cat([xyz, torch.ones_like(xyz[:, :1])], 1))
        mean = total[:, :3] / total[:, 3:].clamp(min=1)
        center = low + (place[:, 1:].flip(-1) + 0.5) * edge
        return torch.cat([points, xyz - mean[row], xyz - center], 1).to(dtype)


def _largest(x: Tensor, row: Tensor, count: int) -> Tensor:
    """x (P, C), not negative, to (count, C): the largest of each row; zeros of one without any."""
    return x.new_zeros(count, x.shape[1]).scatter_reduce(0, row[:, None].expand_as(x), x, "amax")
