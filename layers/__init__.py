"""Layers: nn.Modules that compose the kernels, one folder a role in the block."""

from zoo.layers.attention import (
    Attention,
    CascadedGroupAttention,
    CausalAttention,
    KeyValueState,
    SingleHeadAttention,
)
from zoo.layers.batch_norm import NormLinear
from zoo.layers.conv import (
    CausalConv1d,
    Cell,
    ConvMlp,
    ConvNorm,
    ConvStem,
    MergingDownsample,
    OneShotAggregation,
    conv3x3,
    depthwise,
)
from zoo.layers.drop import DropPath
from zoo.layers.embed import PatchEmbed
from zoo.layers.fuse import fuse
from zoo.layers.mixer import Mixer
from zoo.layers.mlp import Mlp, SwiGLU
from zoo.layers.norm import GatedRMSNorm, RMSNorm
from zoo.layers.parallel import ParallelMixers
from zoo.layers.recompute import recompute
from zoo.layers.residual import Residual
from zoo.layers.reversible import ReversibleSequence
from zoo.layers.ssm import BiMamba, Mamba, Mamba2, Mamba2State, MambaState
from zoo.layers.state import State
from zoo.layers.states import JointState, ModelState

__all__ = [
    "Attention",
    "BiMamba",
    "CascadedGroupAttention",
    "CausalAttention",
    "CausalConv1d",
    "Cell",
    "ConvMlp",
    "ConvNorm",
    "ConvStem",
    "DropPath",
    "GatedRMSNorm",
    "JointState",
    "KeyValueState",
    "Mamba",
    "Mamba2",
    "Mamba2State",
    "MambaState",
    "MergingDownsample",
    "Mixer",
    "Mlp",
    "ModelState",
    "NormLinear",
    "OneShotAggregation",
    "ParallelMixers",
    "PatchEmbed",
    "RMSNorm",
    "Residual",
    "ReversibleSequence",
    "SingleHeadAttention",
    "State",
    "SwiGLU",
    "conv3x3",
    "depthwise",
    "fuse",
    "recompute",
]
