"""Mixtures of experts."""

from zoo.layers.moe.deepseek import DeepSeekMoE
from zoo.layers.moe.latent import LatentMatrix
from zoo.layers.moe.moe import MoE
from zoo.layers.moe.reorder import ExpertMemory, ExpertReads, expert_by_expert, expert_reads, token_by_token
from zoo.layers.moe.routed_blocks import RoutedBlocks
from zoo.layers.moe.sub_dimension_mlp import SubDimensionExperts, SubDimensionMLP
from zoo.layers.moe.sub_dimensions import SubDimensionRouter
from zoo.layers.moe.task_moe import ConditionedGate, TaskEmbedding, TaskGates, TaskMoE

__all__ = [
    "ConditionedGate",
    "DeepSeekMoE",
    "ExpertMemory",
    "ExpertReads",
    "LatentMatrix",
    "MoE",
    "RoutedBlocks",
    "SubDimensionExperts",
    "SubDimensionMLP",
    "SubDimensionRouter",
    "TaskEmbedding",
    "TaskGates",
    "TaskMoE",
    "expert_by_expert",
    "expert_reads",
    "token_by_token",
]
