"""Models of sequences and sets of real vectors: one file a family."""

from zoo.sequence.base import RegressorConfig, SequenceRegressor
from zoo.sequence.drope import DRoPEConfig, DRoPEModel
from zoo.sequence.elm import ELM, ELMConfig
from zoo.sequence.positional import PositionalConfig, PositionalModel

__all__ = [
    "ELM",
    "DRoPEConfig",
    "DRoPEModel",
    "ELMConfig",
    "PositionalConfig",
    "PositionalModel",
    "RegressorConfig",
    "SequenceRegressor",
]
