"""Layers: nn.Modules that compose the kernels, one folder a role in the block."""

from zoo.layers.attention import (
    Attention,
    BidirectionalScatterbrain,
    CascadedGroupAttention,
    CausalAttention,
    ConvolvedAttention,
    GatedAttention,
    GatedLinearAttention,
    KeyValueState,
    LatentAttention,
    Retention,
    RoutingAttention,
    ScatterbrainAttention,
    ShortConv,
    SingleHeadAttention,
    SlidingWindowAttention,
    TaylorAttention,
)
from zoo.layers.batch_norm import NormLinear
from zoo.layers.conv import (
    CausalConv1d,
    Cell,
    ConvMlp,
    ConvNorm,
    ConvStem,
    DoubleGatedConv,
    GatedConv,
    H3Conv,
    MergingDownsample,
    OneShotAggregation,
    conv3x3,
    depthwise,
)
from zoo.layers.depth import ActiveAttention
from zoo.layers.drop import DropPath
from zoo.layers.embed import PatchEmbed
from zoo.layers.fuse import fuse
from zoo.layers.mixer import Mixer
from zoo.layers.mlp import Mlp, SwiGLU
from zoo.layers.norm import GatedRMSNorm, JointRMSNorm, LayerNorm, OffsetRMSNorm, RMSNorm
from zoo.layers.parallel import ParallelMixers
from zoo.layers.recompute import recompute
from zoo.layers.residual import Residual
from zoo.layers.reversible import ReversibleSequence
from zoo.layers.ssm import (
    S4,
    S4D,
    SS2D,
    BiMamba,
    DeltaNet,
    FusedGatedDeltaNet,
    GatedDeltaNet,
    GriffinRecurrence,
    Mamba,
    Mamba2,
    Mamba2State,
    MambaState,
    MambaVisionMixer,
    RWKV7Block,
)
from zoo.layers.state import State
from zoo.layers.states import JointState, ModelState

__all__ = [
    "S4",
    "S4D",
    "SS2D",
    "ActiveAttention",
    "Attention",
    "BiMamba",
    "BidirectionalScatterbrain",
    "CascadedGroupAttention",
    "CausalAttention",
    "CausalConv1d",
    "Cell",
    "ConvMlp",
    "ConvNorm",
    "ConvStem",
    "ConvolvedAttention",
    "DeltaNet",
    "DoubleGatedConv",
    "DropPath",
    "FusedGatedDeltaNet",
    "GatedAttention",
    "GatedConv",
    "GatedDeltaNet",
    "GatedLinearAttention",
    "GatedRMSNorm",
    "GriffinRecurrence",
    "H3Conv",
    "JointRMSNorm",
    "JointState",
    "KeyValueState",
    "LatentAttention",
    "LayerNorm",
    "Mamba",
    "Mamba2",
    "Mamba2State",
    "MambaState",
    "MambaVisionMixer",
    "MergingDownsample",
    "Mixer",
    "Mlp",
    "ModelState",
    "NormLinear",
    "OffsetRMSNorm",
    "OneShotAggregation",
    "ParallelMixers",
    "PatchEmbed",
    "RMSNorm",
    "RWKV7Block",
    "Residual",
    "Retention",
    "ReversibleSequence",
    "RoutingAttention",
    "ScatterbrainAttention",
    "ShortConv",
    "SingleHeadAttention",
    "SlidingWindowAttention",
    "State",
    "SwiGLU",
    "TaylorAttention",
    "conv3x3",
    "depthwise",
    "fuse",
    "recompute",
]
