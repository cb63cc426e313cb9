"""Layers: nn.Modules that compose the kernels, one folder a role in the block."""

from zoo.layers.attention import Attention, CausalAttention, KeyValueState
from zoo.layers.conv import CausalConv1d
from zoo.layers.drop import DropPath
from zoo.layers.embed import PatchEmbed
from zoo.layers.mixer import Mixer
from zoo.layers.mlp import Mlp, SwiGLU
from zoo.layers.norm import GatedRMSNorm, RMSNorm
from zoo.layers.parallel import ParallelMixers
from zoo.layers.ssm import BiMamba, Mamba, Mamba2, Mamba2State, MambaState
from zoo.layers.state import JointState, ModelState, State

__all__ = [
    "Attention",
    "BiMamba",
    "CausalAttention",
    "CausalConv1d",
    "DropPath",
    "GatedRMSNorm",
    "JointState",
    "KeyValueState",
    "Mamba",
    "Mamba2",
    "Mamba2State",
    "MambaState",
    "Mixer",
    "Mlp",
    "ModelState",
    "ParallelMixers",
    "PatchEmbed",
    "RMSNorm",
    "State",
    "SwiGLU",
]
