"""Layers of point clouds: voxels on a grid that is mostly empty."""

from zoo.layers.voxels.attention import ScatteredLinearAttention, windows
from zoo.layers.voxels.conv import DepthwiseConv, SparseConv, SubmanifoldConv
from zoo.layers.voxels.interaction import CrossWindowInteraction
from zoo.layers.voxels.pillars import PillarPool
from zoo.layers.voxels.points import PointEncoder
from zoo.layers.voxels.sites import Sites, Voxels, distinct

__all__ = [
    "CrossWindowInteraction",
    "DepthwiseConv",
    "PillarPool",
    "PointEncoder",
    "ScatteredLinearAttention",
    "Sites",
    "SparseConv",
    "SubmanifoldConv",
    "Voxels",
    "distinct",
    "windows",
]
