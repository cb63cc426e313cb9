"""Mixtures of experts."""

from zoo.layers.moe.deepseek import DeepSeekMoE
from zoo.layers.moe.moe import MoE
from zoo.layers.moe.reorder import ExpertMemory, ExpertReads, expert_by_expert, expert_reads, token_by_token
from zoo.layers.moe.task_moe import ConditionedGate, TaskEmbedding, TaskGates, TaskMoE

__all__ = [
    "ConditionedGate",
    "DeepSeekMoE",
    "ExpertMemory",
    "ExpertReads",
    "MoE",
    "TaskEmbedding",
    "TaskGates",
    "TaskMoE",
    "expert_by_expert",
    "expert_reads",
    "token_by_token",
]
