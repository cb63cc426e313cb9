"""State-space mixers."""

from zoo.layers.sequence_block import SequenceNorm
from zoo.layers.ssm.bimamba import BiMamba
from zoo.layers.ssm.delta_net import DeltaNet, DeltaNetState, FusedGatedDeltaNet, GatedDeltaNet
from zoo.layers.ssm.ema import MultiHeadEMA
from zoo.layers.ssm.expanded_mlstm import ExpandedMLSTM, ExpandedMLSTMState
from zoo.layers.ssm.griffin import RGLRU, GriffinRecurrence, GriffinState
from zoo.layers.ssm.kimi_delta import KimiDeltaAttention
from zoo.layers.ssm.leaky_memory import ExpressiveLeakyMemory, LeakyMemoryState
from zoo.layers.ssm.mamba import Mamba, MambaState
from zoo.layers.ssm.mamba2 import Mamba2, Mamba2State
from zoo.layers.ssm.mamba_vision import MambaVisionMixer
from zoo.layers.ssm.mlstm import MLSTM, MLSTMCell, MLSTMState
from zoo.layers.ssm.rwkv7 import RWKV7Block, RWKV7State
from zoo.layers.ssm.s4 import S4
from zoo.layers.ssm.s4_block import S4Block
from zoo.layers.ssm.s4d import S4D
from zoo.layers.ssm.slstm import SLSTM, SLSTMState
from zoo.layers.ssm.ss2d import SS2D
from zoo.layers.ssm.state_space import StateSpaceState

__all__ = [
    "MLSTM",
    "RGLRU",
    "S4",
    "S4D",
    "SLSTM",
    "SS2D",
    "BiMamba",
    "DeltaNet",
    "DeltaNetState",
    "ExpandedMLSTM",
    "ExpandedMLSTMState",
    "ExpressiveLeakyMemory",
    "FusedGatedDeltaNet",
    "GatedDeltaNet",
    "GriffinRecurrence",
    "GriffinState",
    "KimiDeltaAttention",
    "LeakyMemoryState",
    "MLSTMCell",
    "MLSTMState",
    "Mamba",
    "Mamba2",
    "Mamba2State",
    "MambaState",
    "MambaVisionMixer",
    "MultiHeadEMA",
    "RWKV7Block",
    "RWKV7State",
    "S4Block",
    "SLSTMState",
    "SequenceNorm",
    "StateSpaceState",
]
