"""Features of images read at points in space: 3D deformable attention."""

from zoo.kernels.deformable_attention_3d.op import deformable_attention_3d

__all__ = ["deformable_attention_3d"]
