"""Memories that learn while they read."""

from zoo.layers.memory.neural_memory import NeuralMemory, NeuralMemoryState
from zoo.layers.memory.titans import (
    MemoryAsContext,
    MemoryAsGate,
    MemoryAsLayer,
    MemoryContextState,
    PersistentAttention,
)

__all__ = [
    "MemoryAsContext",
    "MemoryAsGate",
    "MemoryAsLayer",
    "MemoryContextState",
    "NeuralMemory",
    "NeuralMemoryState",
    "PersistentAttention",
]
