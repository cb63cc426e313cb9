"""Mixtures of experts."""

from zoo.layers.moe.deepseek import DeepSeekMoE
from zoo.layers.moe.moe import MoE

__all__ = ["DeepSeekMoE", "MoE"]
