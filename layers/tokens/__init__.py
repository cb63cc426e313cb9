"""Fewer tokens: which of them go into which, and the sequence that is left."""

from zoo.layers.tokens.attention import SizedAttention
from zoo.layers.tokens.merging import match_pairs, merge, tokens_left

__all__ = ["SizedAttention", "match_pairs", "merge", "tokens_left"]
