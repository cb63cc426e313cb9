"""Memories that learn while they read, or keep what layers made, and tables in place of matrices."""

from zoo.layers.memory.hashed import HashedAttention, MemoryBlock, MemoryLayer
from zoo.layers.memory.neural_memory import NeuralMemory, NeuralMemoryState
from zoo.layers.memory.reweaving import ContextReweaving, LatentStates
from zoo.layers.memory.titans import (
    MemoryAsContext,
    MemoryAsGate,
    MemoryAsLayer,
    MemoryContextState,
    PersistentAttention,
)

__all__ = [
    "ContextReweaving",
    "HashedAttention",
    "LatentStates",
    "MemoryAsContext",
    "MemoryAsGate",
    "MemoryAsLayer",
    "MemoryBlock",
    "MemoryContextState",
    "MemoryLayer",
    "NeuralMemory",
    "NeuralMemoryState",
    "PersistentAttention",
]
