"""Adaptive depth: which tokens a layer computes, and how often."""

from zoo.layers.depth.active import ActiveTokens
from zoo.layers.depth.active_attention import ActiveAttention, refreshed
from zoo.layers.depth.mod import TokenRouter, top_share
from zoo.layers.depth.recursion import EveryToken, ExpertChoice, Recursion, TokenChoice

__all__ = [
    "ActiveAttention",
    "ActiveTokens",
    "EveryToken",
    "ExpertChoice",
    "Recursion",
    "TokenChoice",
    "TokenRouter",
    "refreshed",
    "top_share",
]
