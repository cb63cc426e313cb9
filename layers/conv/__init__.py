"""Convolutions over sequences."""

from zoo.layers.conv.causal_conv1d import CausalConv1d
from zoo.layers.conv.gated_conv import GatedConv, GatedConvState

__all__ = ["CausalConv1d", "GatedConv", "GatedConvState"]
