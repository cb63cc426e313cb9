"""Fewer tokens: which of them go into which, which later layers need, and the sequence that is left."""

from zoo.layers.tokens.attention import SizedAttention
from zoo.layers.tokens.merging import match_pairs, merge, tokens_left
from zoo.layers.tokens.predictors import ImagePredictor, TextPredictor, drawn

__all__ = ["ImagePredictor", "SizedAttention", "TextPredictor", "drawn", "match_pairs", "merge", "tokens_left"]
