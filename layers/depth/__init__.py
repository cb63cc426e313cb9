"""Adaptive depth: which tokens a layer computes, and how often."""

from zoo.layers.depth.active import ActiveTokens
from zoo.layers.depth.mod import Route, TokenRouter, top_share
from zoo.layers.depth.recursion import EveryToken, ExpertChoice, Recursion, TokenChoice
from zoo.layers.depth.recursion_attention import ActiveKeyValueState, RecursionAttention

__all__ = [
    "ActiveKeyValueState",
    "ActiveTokens",
    "EveryToken",
    "ExpertChoice",
    "Recursion",
    "RecursionAttention",
    "Route",
    "TokenChoice",
    "TokenRouter",
    "top_share",
]
