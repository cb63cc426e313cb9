"""Attention."""

from zoo.layers.attention.agents import AgentAttention, HeadByHead, IntraHead
from zoo.layers.attention.axial import AxialAttention, shift_down, shift_right
from zoo.layers.attention.cascaded_group import CascadedGroupAttention
from zoo.layers.attention.causal import CausalAttention
from zoo.layers.attention.code_matched import CodeMatchedAttention, ProductQuantizer
from zoo.layers.attention.convolved import ConvolvedAttention, ShortConv
from zoo.layers.attention.deformable import CameraAttention, DeformableAttention
from zoo.layers.attention.full import Attention
from zoo.layers.attention.gated import GatedAttention
from zoo.layers.attention.gated_linear import GatedLinearAttention, Retention, RetentionState
from zoo.layers.attention.keys import Keys
from zoo.layers.attention.kmeans import OnlineKMeans
from zoo.layers.attention.latent import LatentAttention
from zoo.layers.attention.lightning import LightningAttention
from zoo.layers.attention.linformer import LinformerAttention, SequenceProjection
from zoo.layers.attention.lizard import FeatureMemory, LizardAttention
from zoo.layers.attention.memory import MemoryMixer, MemoryState
from zoo.layers.attention.positional import PositionalAttention
from zoo.layers.attention.rotary import Rotary
from zoo.layers.attention.routing import RoutingAttention, RoutingState
from zoo.layers.attention.scaling import Linear, Llama3, RotaryScaling, Yarn
from zoo.layers.attention.scatterbrain import ScatterbrainAttention, ScatterbrainState
from zoo.layers.attention.scatterbrain_full import BidirectionalScatterbrain
from zoo.layers.attention.shared import Adapters, SharedAttention, SharedTransformer
from zoo.layers.attention.shifted import ShiftedAttention
from zoo.layers.attention.single_head import SingleHeadAttention
from zoo.layers.attention.sliding_window import SlidingWindowAttention, SlidingWindowState
from zoo.layers.attention.state import KeyValueState
from zoo.layers.attention.sub_dimension import SubDimensionAttention
from zoo.layers.attention.taylor import TaylorAttention, TaylorAttentionState

__all__ = [
    "Adapters",
    "AgentAttention",
    "Attention",
    "AxialAttention",
    "BidirectionalScatterbrain",
    "CameraAttention",
    "CascadedGroupAttention",
    "CausalAttention",
    "CodeMatchedAttention",
    "ConvolvedAttention",
    "DeformableAttention",
    "FeatureMemory",
    "GatedAttention",
    "GatedLinearAttention",
    "HeadByHead",
    "IntraHead",
    "KeyValueState",
    "Keys",
    "LatentAttention",
    "LightningAttention",
    "Linear",
    "LinformerAttention",
    "LizardAttention",
    "Llama3",
    "MemoryMixer",
    "MemoryState",
    "OnlineKMeans",
    "PositionalAttention",
    "ProductQuantizer",
    "Retention",
    "RetentionState",
    "Rotary",
    "RotaryScaling",
    "RoutingAttention",
    "RoutingState",
    "ScatterbrainAttention",
    "ScatterbrainState",
    "SequenceProjection",
    "SharedAttention",
    "SharedTransformer",
    "ShiftedAttention",
    "ShortConv",
    "SingleHeadAttention",
    "SlidingWindowAttention",
    "SlidingWindowState",
    "SubDimensionAttention",
    "TaylorAttention",
    "TaylorAttentionState",
    "Yarn",
    "shift_down",
    "shift_right",
]
