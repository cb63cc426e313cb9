"""Convolutions over sequences and images."""

from zoo.layers.conv.butterfly_long_conv import ButterflyLongConv
from zoo.layers.conv.causal_conv1d import CausalConv1d
from zoo.layers.conv.cell import Cell
from zoo.layers.conv.channel_norm import LayerNorm2d, NeighbourMerging, conv_layer_norm
from zoo.layers.conv.conv_first import ConvBlock, ConvFirst, MBConv
from zoo.layers.conv.conv_norm import ConvMlp, ConvNorm, GELUConvNorm, ReLU6ConvNorm, SiLUConvNorm, depthwise
from zoo.layers.conv.dense_decoder import DenseDecoder
from zoo.layers.conv.gated_conv import DoubleGatedConv, GatedConv, GatedConvState
from zoo.layers.conv.inference import InferenceConv2d
from zoo.layers.conv.inverted_residual import InvertedResidual
from zoo.layers.conv.long_conv import H3Conv, H3ConvState, LearnedTaps, LongConv, decaying_kernel, random_kernel
from zoo.layers.conv.long_conv_mixer import BidirectionalLongConv, LongConvMixer
from zoo.layers.conv.mbconv3d import MBConv3d
from zoo.layers.conv.osa import OneShotAggregation, SeparableConvNorm, conv3x3
from zoo.layers.conv.patch_merging import ConvStem, MergingDownsample, PatchMerging
from zoo.layers.conv.pyramid import PyramidPooling, Scales, UperHead
from zoo.layers.conv.squeeze_excite import EffectiveSqueezeExcite, SqueezeExcite

__all__ = [
    "BidirectionalLongConv",
    "ButterflyLongConv",
    "CausalConv1d",
    "Cell",
    "ConvBlock",
    "ConvFirst",
    "ConvMlp",
    "ConvNorm",
    "ConvStem",
    "DenseDecoder",
    "DoubleGatedConv",
    "EffectiveSqueezeExcite",
    "GELUConvNorm",
    "GatedConv",
    "GatedConvState",
    "H3Conv",
    "H3ConvState",
    "InferenceConv2d",
    "InvertedResidual",
    "LayerNorm2d",
    "LearnedTaps",
    "LongConv",
    "LongConvMixer",
    "MBConv",
    "MBConv3d",
    "MergingDownsample",
    "NeighbourMerging",
    "OneShotAggregation",
    "PatchMerging",
    "PyramidPooling",
    "ReLU6ConvNorm",
    "Scales",
    "SeparableConvNorm",
    "SiLUConvNorm",
    "SqueezeExcite",
    "UperHead",
    "conv3x3",
    "conv_layer_norm",
    "decaying_kernel",
    "depthwise",
    "random_kernel",
]
