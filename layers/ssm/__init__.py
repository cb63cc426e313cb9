"""State-space mixers."""

from zoo.layers.sequence_block import SequenceNorm
from zoo.layers.ssm.bimamba import BiMamba
from zoo.layers.ssm.delta_net import DeltaNet, DeltaNetState, FusedGatedDeltaNet, GatedDeltaNet
from zoo.layers.ssm.griffin import RGLRU, GriffinRecurrence, GriffinState
from zoo.layers.ssm.kimi_delta import KimiDeltaAttention
from zoo.layers.ssm.mamba import Mamba, MambaState
from zoo.layers.ssm.mamba2 import Mamba2, Mamba2State
from zoo.layers.ssm.mamba_vision import MambaVisionMixer
from zoo.layers.ssm.rwkv7 import RWKV7Block, RWKV7State
from zoo.layers.ssm.s4 import S4
from zoo.layers.ssm.s4_block import S4Block
from zoo.layers.ssm.s4d import S4D
from zoo.layers.ssm.ss2d import SS2D
from zoo.layers.ssm.state_space import StateSpaceState

__all__ = [
    "RGLRU",
    "S4",
    "S4D",
    "SS2D",
    "BiMamba",
    "DeltaNet",
    "DeltaNetState",
    "FusedGatedDeltaNet",
    "GatedDeltaNet",
    "GriffinRecurrence",
    "GriffinState",
    "KimiDeltaAttention",
    "Mamba",
    "Mamba2",
    "Mamba2State",
    "MambaState",
    "MambaVisionMixer",
    "RWKV7Block",
    "RWKV7State",
    "S4Block",
    "SequenceNorm",
    "StateSpaceState",
]
