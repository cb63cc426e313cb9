"""Convolutions over sequences."""

from zoo.layers.conv.causal_conv1d import CausalConv1d
from zoo.layers.conv.gated_conv import GatedConv, GatedConvState
from zoo.layers.conv.long_conv import H3Conv, H3ConvState, LongConv, decaying_kernel, random_kernel

__all__ = [
    "CausalConv1d",
    "GatedConv",
    "GatedConvState",
    "H3Conv",
    "H3ConvState",
    "LongConv",
    "decaying_kernel",
    "random_kernel",
]
