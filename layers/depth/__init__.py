"""Adaptive depth: which tokens a layer computes, and how often."""

from zoo.layers.depth.active import ActiveTokens
from zoo.layers.depth.active_attention import ActiveAttention, refreshed
from zoo.layers.depth.active_windows import CausalWindow, TwoSidedWindow
from zoo.layers.depth.exits import ImageExits, TokenExits
from zoo.layers.depth.expert_choice import ExpertChoice
from zoo.layers.depth.mod import TokenRouter, top_share
from zoo.layers.depth.recursion import EveryToken, Recursion
from zoo.layers.depth.router import linear_router, mlp_router
from zoo.layers.depth.sparse_activation import SparseActivation, SparseActivationBlock
from zoo.layers.depth.token_choice import TokenChoice

__all__ = [
    "ActiveAttention",
    "ActiveTokens",
    "CausalWindow",
    "EveryToken",
    "ExpertChoice",
    "ImageExits",
    "Recursion",
    "SparseActivation",
    "SparseActivationBlock",
    "TokenChoice",
    "TokenExits",
    "TokenRouter",
    "TwoSidedWindow",
    "linear_router",
    "mlp_router",
    "refreshed",
    "top_share",
]
