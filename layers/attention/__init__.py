"""Attention."""

from zoo.layers.attention.causal import CausalAttention
from zoo.layers.attention.full import Attention
from zoo.layers.attention.latent import LatentAttention
from zoo.layers.attention.scatterbrain import ScatterbrainAttention, ScatterbrainState
from zoo.layers.attention.sliding_window import SlidingWindowAttention, SlidingWindowState
from zoo.layers.attention.state import KeyValueState
from zoo.layers.attention.taylor import TaylorAttention, TaylorAttentionState
from zoo.layers.attention.yarn import Yarn

__all__ = [
    "Attention",
    "CausalAttention",
    "KeyValueState",
    "LatentAttention",
    "ScatterbrainAttention",
    "ScatterbrainState",
    "SlidingWindowAttention",
    "SlidingWindowState",
    "TaylorAttention",
    "TaylorAttentionState",
    "Yarn",
]
