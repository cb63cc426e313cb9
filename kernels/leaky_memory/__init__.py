"""The memory of the expressive leaky memory neuron: leaky units driven by a network that sees what they hold."""

from zoo.kernels.leaky_memory.op import LeakyMemoryOutput, leaky_memory

__all__ = ["LeakyMemoryOutput", "leaky_memory"]
