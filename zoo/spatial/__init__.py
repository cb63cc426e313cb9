"""Models of space: what is in a cloud of points, or around cameras."""

from zoo.spatial.cameras import Rig, ground
from zoo.spatial.dfa3d import DFA3D, DFA3DConfig
from zoo.spatial.files import draw_cloud, draw_ground, read_points, read_views
from zoo.spatial.scatterformer import ScatterFormer, ScatterFormerConfig, ScatterFormerLayer

__all__ = [
    "DFA3D",
    "DFA3DConfig",
    "Rig",
    "ScatterFormer",
    "ScatterFormerConfig",
    "ScatterFormerLayer",
    "draw_cloud",
    "draw_ground",
    "ground",
    "read_points",
    "read_views",
]
