"""Rotary position embedding."""

from zoo.kernels.rope.op import rope

__all__ = ["rope"]
